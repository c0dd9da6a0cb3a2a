//! Durations and sizes as people write them in options: `500ms`, `1MiB`.
//!
//! Owns these two small languages. It must never know which option they belong to. Look next at
//! [`options`](crate::options), which reads them.

use std::time::Duration;

/// What a duration looks like, for help lines.
pub(crate) const DURATION_HELP: &str = "write a whole number and one of ns, us, ms, s, m, h, as in \"500ms\"";
/// What a size looks like, for help lines.
pub(crate) const SIZE_HELP: &str =
    "write a whole number and one of B, KiB, MiB, GiB, as in \"1MiB\", or a plain number of bytes";

/// Reads a duration longer than nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    let (number, unit) = split(text)?;
    let scaled = |factor: u64| number.checked_mul(factor).ok_or("this is too long");
    let duration = match unit {
        "ns" => Duration::from_nanos(number),
        "us" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(scaled(60)?),
        "h" => Duration::from_secs(scaled(60 * 60)?),
        "" => return Err("the unit is missing"),
        _ => return Err("this is no unit of time"),
    };
    if duration.is_zero() { Err("a call needs some time") } else { Ok(duration) }
}

/// Reads a number of bytes greater than none.
pub(crate) fn size(text: &str) -> Result<usize, &'static str> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("this is no unit of size"),
    };
    let bytes = number.checked_mul(factor).and_then(|bytes| usize::try_from(bytes).ok());
    match bytes {
        None => Err("this is too large"),
        Some(0) => Err("a message needs some bytes"),
        Some(bytes) => Ok(bytes),
    }
}

fn split(text: &str) -> Result<(u64, &str), &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("the number is missing");
    }
    let number = number.parse().map_err(|_| "the number is too large")?;
    Ok((number, unit.trim_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_time_is_read() {
        assert_eq!(duration("7ns"), Ok(Duration::from_nanos(7)));
        assert_eq!(duration("7us"), Ok(Duration::from_micros(7)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2 m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
    }

    #[test]
    fn a_wrong_duration_says_what_is_wrong() {
        assert_eq!(duration(""), Err("the number is missing"));
        assert_eq!(duration("ms"), Err("the number is missing"));
        assert_eq!(duration("-5s"), Err("the number is missing"));
        assert_eq!(duration("500"), Err("the unit is missing"));
        assert_eq!(duration("5 minutes"), Err("this is no unit of time"));
        assert_eq!(duration("1.5s"), Err("this is no unit of time"));
        assert_eq!(duration("0s"), Err("a call needs some time"));
        assert_eq!(duration("18446744073709551615h"), Err("this is too long"));
        assert_eq!(duration("18446744073709551616ns"), Err("the number is too large"));
    }

    #[test]
    fn every_unit_of_size_is_read() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("512B"), Ok(512));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong() {
        assert_eq!(size("MiB"), Err("the number is missing"));
        assert_eq!(size("1MB"), Err("this is no unit of size"));
        assert_eq!(size("1mib"), Err("this is no unit of size"));
        assert_eq!(size("0"), Err("a message needs some bytes"));
        assert_eq!(size("18446744073709551615GiB"), Err("this is too large"));
    }
}
