//! Rows that are token ids already.

use serde_json::{Map, Value};

use super::{Content, flag, list, weight};

fn ids(row: &Map<String, Value>, key: &str) -> Result<Vec<u32>, String> {
    list(row, key)?
        .iter()
        .enumerate()
        .map(|(index, value)| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| format!("`{key}`[{index}] is {value}: expected a token id"))
        })
        .collect()
}

fn some_ids(row: &Map<String, Value>, key: &str) -> Result<Vec<u32>, String> {
    let ids = ids(row, key)?;
    if ids.is_empty() { Err(format!("`{key}` is empty")) } else { Ok(ids) }
}

/// `input_ids` with `labels` as Hugging Face has them: `labels[i]` is token `i`
/// itself if it is trained, else -100. The first token is predicted from nothing
/// and never trained. `weights[i]` is the weight of token `i` in the loss; 0
/// leaves the token out.
pub(super) fn row(row: &Map<String, Value>) -> Result<Content, String> {
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
                    return Err(format!(
                        "`labels`[{index}] is {label} where `input_ids` has {}: a label is the \
                         token at its own place, or -100",
                        ids[index]
                    ));
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
        return Err("the row has fewer than two tokens: nothing can be predicted".into());
    }
    trained[0] = false;
    if !trained.contains(&true) {
        let cause = match (row.contains_key("weights"), row.contains_key("labels")) {
            (false, _) => "every label is -100",
            (true, false) => "no token has a weight above 0",
            (true, true) => "no token has a label and a weight above 0",
        };
        return Err(format!("{cause}: there is nothing to learn"));
    }
    Ok(Content::Tokens { ids, trained, weights })
}

pub(super) fn pair_row(row: &Map<String, Value>) -> Result<Content, String> {
    let (chosen, rejected) = (some_ids(row, "chosen_ids")?, some_ids(row, "rejected_ids")?);
    if chosen == rejected {
        return Err("`chosen_ids` and `rejected_ids` are the same".into());
    }
    Ok(Content::PairTokens { prompt: some_ids(row, "prompt_ids")?, chosen, rejected })
}

pub(super) fn labelled_row(row: &Map<String, Value>) -> Result<Content, String> {
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

fn same_length(key: &str, got: usize, expected: usize) -> Result<(), String> {
    if got == expected {
        return Ok(());
    }
    Err(format!("`{key}` has {got} entries, `input_ids` has {expected}"))
}
