//! Rows that are token ids already.

use serde_json::Value;

use super::fields::{flag, list, weight};
use super::{Content, Format, Layout, Row};
use crate::example::DataKind;
use crate::row_error::{RowError, RowResult};

/// `input_ids`, and `labels` with -100 where nothing is trained.
pub(super) static TOKENS: Format = Format {
    name: "tokenised",
    kind: DataKind::Supervised,
    layout: Layout::Ids,
    keys: &[&["input_ids"]],
    reads: &["labels", "weights", "attention_mask", "completion_mask", "assistant_masks"],
    lists: &["input_ids"],
    fits: |_| true,
    read: tokens_row,
};

/// `prompt_ids`, `chosen_ids` and `rejected_ids`.
pub(super) static PAIR_TOKENS: Format = Format {
    name: "tokenised preference pairs",
    kind: DataKind::Pairs,
    layout: Layout::Ids,
    keys: &[&["prompt_ids"], &["chosen_ids"], &["rejected_ids"]],
    reads: &[],
    lists: &[],
    fits: |_| true,
    read: pair_row,
};

/// `prompt_ids`, `completion_ids`, `label`, perhaps `KL_completion_ids`.
pub(super) static LABELLED_TOKENS: Format = Format {
    name: "tokenised labelled completions",
    kind: DataKind::Labelled,
    layout: Layout::Ids,
    keys: &[&["prompt_ids"], &["completion_ids"], &["label"]],
    reads: &["KL_completion_ids"],
    lists: &[],
    fits: |_| true,
    read: labelled_row,
};

fn ids(row: &Row, key: &'static str) -> RowResult<Vec<u32>> {
    list(row, key)?
        .iter()
        .enumerate()
        .map(|(index, value)| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| RowError::NotAnId {
                key,
                index,
                got: value.to_string(),
            })
        })
        .collect()
}

fn some_ids(row: &Row, key: &'static str) -> RowResult<Vec<u32>> {
    let ids = ids(row, key)?;
    if ids.is_empty() { Err(RowError::empty(key)) } else { Ok(ids) }
}

/// `input_ids` with `labels` as Hugging Face has them: `labels[i]` is token `i`
/// itself if it is trained, else -100. The first token is predicted from nothing
/// and never trained. `weights[i]` is the weight of token `i` in the loss; 0
/// leaves the token out, as does a 0 in TRL's `completion_mask` and `assistant_masks`.
fn tokens_row(row: &Row) -> RowResult<Content> {
    let mut ids = some_ids(row, "input_ids")?;
    let mut trained = vec![true; ids.len()];
    if row.get("labels").is_some_and(|labels| !labels.is_null()) {
        let labels = list(row, "labels")?;
        same_length("labels", labels.len(), ids.len())?;
        for (index, label) in labels.iter().enumerate() {
            trained[index] = match label.as_i64() {
                Some(-100) => false,
                Some(label) if label == i64::from(ids[index]) => true,
                _ => {
                    return Err(RowError::Label { index, label: label.to_string(), id: ids[index] });
                }
            };
        }
    }
    let mut weights = None;
    if row.get("weights").is_some_and(|weights| !weights.is_null()) {
        let given = list(row, "weights")?;
        same_length("weights", given.len(), ids.len())?;
        let given: Vec<f32> = given.iter().map(|value| weight(value, "weights")).collect::<Result<_, _>>()?;
        trained.iter_mut().zip(&given).for_each(|(trained, weight)| *trained &= *weight > 0.0);
        weights = given.iter().any(|weight| ![0.0, 1.0].contains(weight)).then_some(given);
    }
    // TRL's masks: 1 where the token is to be learned.
    for key in ["completion_mask", "assistant_masks"] {
        if row.get(key).is_some_and(|mask| !mask.is_null()) {
            let mask = list(row, key)?;
            same_length(key, mask.len(), ids.len())?;
            for (trained, value) in trained.iter_mut().zip(mask) {
                *trained &= flag(value, key)?;
            }
        }
    }
    if row.get("attention_mask").is_some_and(|mask| !mask.is_null()) {
        let mask = list(row, "attention_mask")?;
        same_length("attention_mask", mask.len(), ids.len())?;
        let kept: Vec<bool> = mask.iter().map(|value| flag(value, "attention_mask")).collect::<Result<_, _>>()?;
        // Padding, on either side, is not part of the row.
        let keep = |index: &usize| kept[*index];
        trained = (0..ids.len()).filter(keep).map(|index| trained[index]).collect();
        weights = weights.map(|weights| (0..ids.len()).filter(keep).map(|index| weights[index]).collect());
        ids = (0..ids.len()).filter(keep).map(|index| ids[index]).collect();
    }
    if ids.len() < 2 {
        return Err(RowError::OneToken);
    }
    trained[0] = false;
    if !trained.contains(&true) {
        let has = |keys: &[&str]| keys.iter().any(|key| super::given(row, key));
        return Err(RowError::Untrained {
            weights: has(&["weights", "completion_mask", "assistant_masks"]),
            labels: has(&["labels"]),
        });
    }
    Ok(Content::Tokens { ids, trained, weights })
}

fn pair_row(row: &Row) -> RowResult<Content> {
    let (chosen, rejected) = (some_ids(row, "chosen_ids")?, some_ids(row, "rejected_ids")?);
    if chosen == rejected {
        return Err(RowError::Same("chosen_ids", "rejected_ids"));
    }
    Ok(Content::PairTokens { prompt: some_ids(row, "prompt_ids")?, chosen, rejected })
}

fn labelled_row(row: &Row) -> RowResult<Content> {
    let kl_completion = match row.get("KL_completion_ids") {
        None | Some(Value::Null) => None,
        Some(_) => Some(some_ids(row, "KL_completion_ids")?),
    };
    Ok(Content::LabelledTokens {
        prompt: some_ids(row, "prompt_ids")?,
        completion: some_ids(row, "completion_ids")?,
        label: flag(&row["label"], "label")?,
        kl_completion,
    })
}

fn same_length(key: &'static str, got: usize, expected: usize) -> RowResult<()> {
    if got == expected {
        return Ok(());
    }
    Err(RowError::Length { key, got, expected })
}
