//! Which known name a misspelt one was meant to be.

/// The known name that `given` is most likely a slip of, if one is near.
///
/// Names are compared by Damerau and Levenshtein's distance, without regard to
/// case. One edit per three letters of the longer name is near; one edit always
/// is, unless no letter stays. In dotted names the last part is compared alone too, at the price of one
/// edit, because the right name in the wrong section is the commonest slip. Of
/// equally near names the alphabetically first is returned.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    known
        .into_iter()
        .filter_map(|name| {
            let known = name.to_lowercase();
            let elsewhere = if given.contains('.') && known.contains('.') {
                near(&last(&given), &last(&known)).map(|distance| distance + 1)
            } else {
                None
            };
            let distance = near(&given, &known).into_iter().chain(elsewhere).min()?;
            Some((distance, name))
        })
        .min()
        .map(|(_, name)| name)
}

/// The edits between two names, if they are few enough.
fn near(given: &str, known: &str) -> Option<usize> {
    let longer = given.chars().count().max(known.chars().count());
    let distance = strsim::damerau_levenshtein(given, known);
    (distance <= (longer / 3).max(1) && distance < longer).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        assert_eq!(nearest("bata", ["alpha", "beta"]), Some("beta"));
        assert_eq!(nearest("Cross_Entropy", ["focal", "cross-entropy"]), Some("cross-entropy"));
        assert_eq!(nearest("dop", ["kto", "dpo"]), Some("dpo"));
        assert_eq!(nearest("zebra", ["alpha", "beta"]), None);
        assert_eq!(nearest("x", ["y"]), None);
    }

    #[test]
    fn a_name_in_the_wrong_section_is_found() {
        let known = ["lora.rank", "train.epochs", "train.steps"];
        assert_eq!(nearest("train.rank", known), Some("lora.rank"));
        assert_eq!(nearest("train.epocs", known), Some("train.epochs"));
        assert_eq!(nearest("lora.zzz", known), None);
    }
}
