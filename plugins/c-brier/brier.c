/* A loss in plain C: (1 - p)^2, the Brier score of the right token.
 *
 * Build: cc -O2 -shared -fPIC -I../../plugin-api/include -o libbrier.so brier.c -lm
 */
#include "finetuned_plugin.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put(ft_sink sink, const char *text)
{
    ft_bytes bytes = { (const uint8_t *)text, strlen(text) };
    sink.write(sink.context, bytes);
}

static int32_t describe(const ft_plugin_v1 *plugin, ft_sink out, ft_sink error)
{
    (void)plugin; (void)error;
    put(out, "{\"name\": \"c-brier\", \"kind\": \"loss\", \"version\": \"1.0.0\","
             " \"help\": \"The squared miss of the right token's probability, in C.\","
             " \"parameters\": []}");
    return FT_OK;
}

static int32_t create(const ft_plugin_v1 *plugin, ft_bytes values, ft_instance *out, ft_sink error)
{
    (void)plugin; (void)values; (void)error;
    *out = malloc(1); /* nothing to keep; an instance must not be null */
    return *out ? FT_OK : FT_ERROR;
}

static int32_t needs(ft_instance instance, ft_needs_v1 *out, ft_sink error)
{
    (void)instance; (void)error;
    memset(out, 0, sizeof *out); /* logp is always there */
    return FT_OK;
}

static int32_t evaluate(ft_instance instance, const ft_batch_v1 *batch, ft_gradients_v1 *out, ft_sink error)
{
    double total = 0, loss = 0;
    (void)instance;
    for (int role = 0; role < FT_KL_COMPLETION; role++)
        total += batch->totals->roles[role].weight;
    if (total <= 0)
        total = 1;
    if (out->dlogp.length != batch->tokens) {
        put(error, "dlogp has another length than the batch");
        return FT_ERROR;
    }
    for (size_t i = 0; i < batch->tokens; i++) {
        double scale = batch->weight[i] / total, p, miss;
        if (scale == 0) {
            out->dlogp.data[i] = 0;
            continue;
        }
        p = exp(batch->logp[i]);
        miss = 1 - p;
        loss += scale * miss * miss;
        out->dlogp.data[i] = (float)(-2 * scale * miss * p);
    }
    out->dlogp.written = batch->tokens;
    out->loss = loss;
    return FT_OK;
}

static const ft_plugin_v1 PLUGINS[] = {
    { .describe = describe, .create = create, .destroy = free, .needs = needs, .evaluate = evaluate },
};

static const ft_header_v1 HEADER = {
    FT_MAGIC, FT_ABI_VERSION, { (const uint8_t *)"C", 1 }, PLUGINS, 1,
};

const ft_header_v1 *finetuned_plugin(void) { return &HEADER; }
