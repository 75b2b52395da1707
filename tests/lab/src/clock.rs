//! Time: epoch seconds for records, a process-wide centisecond counter for UPIDs, dates for headers and archives.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static BOOT: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since 1970.
pub(crate) fn epoch_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|age| age.as_millis() as u64).unwrap_or_default()
}

/// Seconds since 1970.
pub(crate) fn epoch() -> u64 {
    epoch_millis() / 1000
}

/// Centiseconds since this lab started, counted from an uptime that a node could have: the start time of a process.
pub(crate) fn centiseconds() -> u64 {
    const UPTIME: u64 = 400_000;
    UPTIME + BOOT.elapsed().as_millis() as u64 / 10
}

/// Seconds the node has been up.
pub(crate) fn uptime() -> u64 {
    centiseconds() / 100
}

/// Year, month, day, hour, minute, second in UTC.
pub(crate) fn civil(epoch: u64) -> [u64; 6] {
    // Days to date after Howard Hinnant's algorithm.
    let days = epoch / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    [year, month, day, epoch / 3600 % 24, epoch / 60 % 60, epoch % 60]
}

/// `Fri, 20 Nov 2026 12:57:28 GMT`.
pub(crate) fn http_date() -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let now = epoch();
    let [year, month, day, hour, minute, second] = civil(now);
    let weekday = DAYS[(now / 86_400 % 7) as usize];
    let month = MONTHS[(month as usize + 11) % 12];
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(civil(1_795_181_339), [2026, 11, 20, 13, 28, 59]);
    }
}
