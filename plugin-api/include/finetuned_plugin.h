/* finetuned_plugin.h: the door for plugins in C, C++, Zig and others.
 *
 * ABI version 1, frozen: it never changes, not even by a field at its end.
 * A library exports one function,
 *
 *     const ft_header_v1 *finetuned_plugin(void);
 *
 * which hands out a static header with a table for each plugin. All functions
 * of a table return a status; FT_ERROR with words in the error sink is how a
 * plugin says that something went wrong. The host calls an instance from one
 * thread at a time. Pointers are valid until the call returns. Booleans are 0
 * or 1. Text is UTF-8 and not zero-terminated. The words of the Rust
 * documentation (crate finetuned-plugin-api, modules loss, optimizer and
 * alignment) hold for every field of the same name.
 */
#ifndef FINETUNED_PLUGIN_H
#define FINETUNED_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FT_MAGIC 0x4654504cu
#define FT_ABI_VERSION 1u

enum { FT_OK = 0, FT_ERROR = 1, FT_NOTHING = 2, FT_PANIC = 3 };

typedef struct { const uint8_t *data; size_t length; } ft_bytes;

/* Numbers to write into memory of the host. `data` is null where they are not
 * wanted; set `written` to how many you wrote, which must be `length`. */
typedef struct { float *data; size_t length; size_t written; } ft_floats_mut;

/* Takes bytes that the plugin gives, at once or in parts. */
typedef struct {
    void *context;
    void (*write)(void *context, ft_bytes bytes);
} ft_sink;

/* Takes named numbers for the report. */
typedef struct {
    void *context;
    void (*add)(void *context, ft_bytes name, double value);
} ft_metric_sink;

enum { FT_PLAIN = 0, FT_CHOSEN = 1, FT_REJECTED = 2, FT_COMPLETION = 3, FT_KL_COMPLETION = 4 };

typedef struct {
    size_t start, end;   /* tokens start..end of the batch */
    int64_t pair;        /* -1: of no pair */
    uint32_t role;
    int32_t label;       /* 1 desirable, 0 undesirable, -1 none */
    float reward;
    uint32_t has_reward;
} ft_sequence_v1;

typedef struct {
    uint64_t sequences;
    uint64_t tokens;            /* counted tokens of a weight above zero */
    double weight;              /* the sum of their weights */
    uint64_t completion_tokens; /* the same, completions only */
    double completion_weight;
} ft_role_totals_v1;

/* Of the whole accumulated step: divide by these, so that the contributions of
 * micro-batches add up. */
typedef struct {
    ft_role_totals_v1 roles[5]; /* by role */
    uint64_t pairs, desirable, undesirable;
} ft_totals_v1;

typedef struct {
    size_t tokens;              /* the length of each token array */
    size_t sequence_count;
    const float *logp;          /* log-probability of each token, in nats */
    const float *weight;        /* 0: masked, must not matter */
    const uint8_t *completion;  /* 0 for a prompt's token */
    const uint32_t *token;
    const ft_sequence_v1 *sequences;
    const ft_totals_v1 *totals;
    const double *context;      /* what `prepare` gave */
    size_t context_length;
    const float *entropy;       /* null where not asked for; so the next four */
    const float *lse;
    const float *mean_logp;
    const float *reference_logp;
    const float *values;        /* one for each sequence */
} ft_batch_v1;

typedef struct {
    double loss;                /* this batch's part of the step's loss */
    ft_floats_mut dlogp, dentropy, dlse, dmean_logp, dvalue;
    ft_metric_sink metrics;
} ft_gradients_v1;

/* A loss that asks for `value` alone gets nothing of the language-model head:
   `logp` is zeros, and a derivative by it is an error. One that reads both asks
   for another statistic as well. */
typedef struct {
    uint32_t entropy, lse, mean_logp, reference_logp, prompt_logp, value;
    uint32_t before_step;       /* 0 nothing, 1 KL completions, 2 everything */
} ft_needs_v1;

typedef struct {
    uint32_t data;              /* 0 supervised, 1 pairs, 2 labelled, 3 rewards, 4 prompts */
    uint32_t reference, value_head, kl_completions;
} ft_alignment_needs_v1;

/* The loss is the sum over tokens of weight * (logp * rule.logp + ...). */
typedef struct { double logp, mean_logp, entropy, lse; } ft_token_rule_v1;

typedef struct {
    ft_bytes tensor;            /* {"shape": [..], "name": "..", "kind": ".."} */
    float *parameter;
    const float *gradient;
    size_t elements;
    const ft_floats_mut *states;
    size_t state_count;
    double learning_rate;
    uint64_t step;              /* 1 for the first */
} ft_host_step_v1;

typedef void *ft_instance;

/* Functions that a kind does not have are null. */
typedef struct ft_plugin_v1 {
    const void *user;           /* the plugin's own */

    /* every kind */
    int32_t (*describe)(const struct ft_plugin_v1 *plugin, ft_sink out, ft_sink error);
    int32_t (*create)(const struct ft_plugin_v1 *plugin, ft_bytes values, ft_instance *out, ft_sink error);
    void (*destroy)(ft_instance instance);

    /* loss, alignment; all but needs and evaluate may be null */
    int32_t (*needs)(ft_instance instance, ft_needs_v1 *out, ft_sink error);
    int32_t (*prepare)(ft_instance instance, const ft_batch_v1 *step, ft_sink out, ft_sink error);
    int32_t (*evaluate)(ft_instance instance, const ft_batch_v1 *batch, ft_gradients_v1 *out, ft_sink error);
    int32_t (*separable)(ft_instance instance, const ft_totals_v1 *totals, ft_token_rule_v1 *out, ft_sink error);
    int32_t (*end_step)(ft_instance instance, double loss, ft_bytes metrics, ft_sink error);
    int32_t (*state)(ft_instance instance, ft_sink out, ft_sink error);
    int32_t (*restore)(ft_instance instance, ft_bytes state, ft_sink error);

    /* alignment */
    int32_t (*alignment_needs)(ft_instance instance, ft_alignment_needs_v1 *out, ft_sink error);

    /* optimizer; all but rule may be null */
    int32_t (*rule)(ft_instance instance, ft_bytes tensor, ft_sink out, ft_sink error);
    int32_t (*evaluation)(ft_instance instance, ft_bytes tensor, ft_sink out, ft_sink error);
    int32_t (*host_states)(ft_instance instance, ft_bytes tensor, ft_sink out, ft_sink error);
    int32_t (*host_step)(ft_instance instance, const ft_host_step_v1 *step, ft_sink error);
} ft_plugin_v1;

typedef struct {
    uint32_t magic;             /* FT_MAGIC */
    uint32_t abi_version;       /* FT_ABI_VERSION */
    ft_bytes built_with;
    const ft_plugin_v1 *plugins;
    size_t plugin_count;
} ft_header_v1;

#if defined(_WIN32)
__declspec(dllexport)
#elif defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const ft_header_v1 *finetuned_plugin(void);

#ifdef __cplusplus
}
#endif
#endif
