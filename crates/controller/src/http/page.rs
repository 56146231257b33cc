//! Cuts a page out of a list.

use fleetward_api::lists::{LONGEST_PAGE, Row};
use fleetward_model::{ErrorCode, Failure};

/// What a query says of its page.
pub(super) struct Page {
    limit: usize,
    after: Option<String>,
}

impl Page {
    /// # Errors
    /// A limit that is none.
    pub(super) fn new(limit: Option<u32>, after: Option<String>) -> Result<Self, Failure> {
        let limit = match limit {
            None => usize::MAX,
            Some(limit @ 1..=LONGEST_PAGE) => limit as usize,
            Some(limit) => {
                let what = format!("a page has 1 to {LONGEST_PAGE} rows, not {limit}");
                return Err(Failure::new(ErrorCode::InvalidArgument, what)
                    .fix(format!("limit={LONGEST_PAGE}")));
            }
        };
        Ok(Self { limit, after })
    }

    pub(super) const fn is_first(&self) -> bool {
        self.after.is_none()
    }

    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// `None` without one.
    pub(super) fn limit_given(&self) -> Option<usize> {
        (self.limit < usize::MAX).then_some(self.limit)
    }

    /// The first name of the cursor.
    pub(super) fn after_name(&self) -> Option<&str> {
        self.after.as_deref()?.split('/').next()
    }

    /// The cursor, as what it is made of.
    ///
    /// # Errors
    /// It is not of that form.
    pub(super) fn place<T>(
        &self,
        form: &str,
        read: impl FnOnce(&[&str]) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(after) = &self.after else {
            return Ok(None);
        };
        let parts: Vec<_> = after.split('/').collect();
        read(&parts).map(Some).ok_or_else(|| {
            let what = format!("the list has no row {after:?} that others could follow");
            Failure::new(ErrorCode::InvalidArgument, what)
                .because(format!("its rows stand at {form}"))
                .fix("ask again from the beginning, without `after`")
        })
    }

    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// Of rows in the order of `names`, whether one follows. The cursor may say less than the row: `web` stands for every
    /// VM of that name. The row that it was taken from may be gone.
    pub(super) fn is_after(&self, names: &[&str]) -> bool {
        let Some(after) = &self.after else {
            return true;
        };
        let after: Vec<_> = after.split('/').collect();
        names.get(..after.len()).unwrap_or(names) > after.as_slice()
    }

    /// Of rows in the order of their names.
    pub(super) fn of_named<T: Row>(&self, rows: impl IntoIterator<Item = T>) -> Vec<T> {
        rows.into_iter()
            .filter(|row| self.is_after(&[&row.cursor()]))
            .take(self.limit)
            .collect()
    }

    /// Of rows in an order of their own, in which the one of the cursor must be.
    ///
    /// # Errors
    /// A cursor of no row.
    pub(super) fn of_listed<T: Row>(&self, rows: Vec<T>) -> Result<Vec<T>, Failure> {
        let start = match &self.after {
            None => 0,
            Some(after) => {
                let found = rows.iter().position(|row| row.cursor() == *after);
                1 + found.ok_or_else(|| {
                    let what = format!("the list has no row {after:?} that others could follow");
                    Failure::new(ErrorCode::InvalidArgument, what)
                        .because("it is gone, or what is listed was narrowed")
                        .fix("ask again from the beginning, without `after`")
                })?
            }
        };
        Ok(rows.into_iter().skip(start).take(self.limit).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: u32, after: Option<&str>) -> Page {
        Page::new(Some(limit), after.map(str::to_owned)).expect("a page")
    }

    /// A row of a list that has an order of its own.
    #[derive(Debug, Clone, PartialEq)]
    struct Numbered(u64);

    impl Row for Numbered {
        fn cursor(&self) -> String {
            self.0.to_string()
        }
    }

    #[test]
    fn pages_put_one_after_the_other_are_the_list() {
        let rows: Vec<_> = (1..8).rev().map(Numbered).collect();
        for limit in 1..9 {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let next = page(limit, after.as_deref());
                let found = next.of_listed(rows.clone()).expect("a known cursor");
                seen.extend(found.clone());
                if found.len() < limit as usize {
                    break;
                }
                after = found.last().map(Row::cursor);
            }
            assert_eq!(seen, rows, "{limit}");
        }
    }

    #[test]
    fn a_name_stands_for_all_that_bear_it_and_may_be_gone() {
        let whole = page(9, Some("web"));
        assert!(!whole.is_after(&["web", "a"]) && !whole.is_after(&["db", "z"]));
        assert!(whole.is_after(&["web2", "a"]));
        let exact = page(9, Some("web/b"));
        assert!(exact.is_after(&["web", "c"]) && !exact.is_after(&["web", "b"]));
    }

    #[test]
    fn a_cursor_of_no_row_and_a_page_without_rows_are_refused() {
        let refused = page(1, Some("1")).of_listed(vec![Numbered(2)]);
        assert_eq!(
            refused.expect_err("refused").code,
            ErrorCode::InvalidArgument
        );
        for limit in [0, LONGEST_PAGE + 1] {
            assert!(Page::new(Some(limit), None).is_err(), "{limit}");
        }
    }
}
