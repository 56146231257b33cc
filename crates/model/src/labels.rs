//! Labels of a VM.

use crate::LabelKey;
use litemap::LiteMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// Values by key, in the order of the keys. Values hold at most [`MAX_LABEL_VALUE`](crate::MAX_LABEL_VALUE) characters, none
/// of them a control character.
///
/// A map of few entries, of which a controller holds one for each VM: it takes the memory of its entries. JSON has it as an
/// object, also where it is empty, which is what the first versions wrote and read (`LiteMap` alone would write an array).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(LiteMap<LabelKey, String>);

impl Labels {
    #[must_use]
    pub const fn new() -> Self {
        Self(LiteMap::new_vec())
    }
}

impl Deref for Labels {
    type Target = LiteMap<LabelKey, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Labels {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl FromIterator<(LabelKey, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (LabelKey, String)>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a LabelKey, &'a String);
    type IntoIter = <&'a LiteMap<LabelKey, String> as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        (&self.0).into_iter()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let labels = BTreeMap::deserialize(deserializer)?;
        Ok(labels.into_iter().collect())
    }
}
