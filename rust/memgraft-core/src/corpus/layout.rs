//! Where a corpus's tokens lie in its files, and where its documents start.

/// A stream of tokens made of spans of a source, cut into documents.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// Start of each span in the stream; spans are never empty.
    starts: Vec<u64>,
    /// Start of each span in the source.
    sources: Vec<u64>,
    /// Ends of the documents in the stream.
    ends: Vec<u64>,
    len: u64,
}

impl Layout {
    /// Appends `len` tokens that lie at `source`.
    pub(super) fn push(&mut self, source: u64, len: u64) {
        if len == 0 {
            return;
        }
        let joins = match (self.starts.last(), self.sources.last()) {
            (Some(&start), Some(&from)) => from + (self.len - start) == source,
            _ => false,
        };
        if !joins {
            self.starts.push(self.len);
            self.sources.push(source);
        }
        self.len += len;
    }

    /// Ends a document here; it may be empty.
    pub(super) fn end_document(&mut self) {
        self.ends.push(self.len);
    }

    /// Appends `other`, whose sources lie `base` further on.
    pub(super) fn append(&mut self, other: &Self, base: u64) {
        for (at, &source) in other.sources.iter().enumerate() {
            let end = other.starts.get(at + 1).copied().unwrap_or(other.len);
            self.push(base + source, end - other.starts[at]);
        }
        let shift = self.len - other.len;
        self.ends.extend(other.ends.iter().map(|end| shift + end));
    }

    /// Replaces the documents by those that end at `ends` in the stream.
    pub(super) fn set_ends(&mut self, ends: Vec<u64>) {
        self.ends = ends;
    }

    pub(super) fn num_tokens(&self) -> u64 {
        self.len
    }

    pub(super) fn num_documents(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// Stream positions of document `document`.
    pub(super) fn document(&self, document: usize) -> (u64, u64) {
        let start = if document == 0 { 0 } else { self.ends[document - 1] };
        (start, self.ends[document])
    }

    /// The layout of the chosen documents alone, in the order given.
    pub(super) fn select(&self, documents: impl Iterator<Item = usize>) -> Self {
        let mut chosen = Self::default();
        for document in documents {
            let (start, end) = self.document(document);
            self.spans(start, end, |source, len| {
                chosen.push(source, len);
                Ok::<_, std::convert::Infallible>(())
            })
            .unwrap_or_else(|never| match never {});
            chosen.end_document();
        }
        chosen
    }

    /// Visits the source spans of stream positions `start..end` as (source, length).
    pub(super) fn spans<E>(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = start;
        let mut span = self.starts.partition_point(|&first| first <= start).saturating_sub(1);
        while at < end {
            let span_end = self.starts.get(span + 1).copied().unwrap_or(self.len);
            let len = span_end.min(end) - at;
            visit(self.sources[span] + (at - self.starts[span]), len)?;
            at += len;
            span += 1;
        }
        Ok(())
    }

    /// Index of the document that holds stream position `position`.
    pub(super) fn document_at(&self, position: u64) -> usize {
        self.ends.partition_point(|&end| end <= position)
    }

    /// Document starts and the end of the last: one more entry than documents.
    pub(super) fn document_starts(&self) -> Vec<u64> {
        std::iter::once(0).chain(self.ends.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(layout: &Layout, start: u64, end: u64) -> Vec<u64> {
        let mut out = Vec::new();
        layout
            .spans(start, end, |source, len| {
                out.extend(source..source + len);
                Ok::<_, ()>(())
            })
            .unwrap();
        out
    }

    #[test]
    fn adjacent_spans_join_and_scattered_ones_do_not() {
        let mut layout = Layout::default();
        layout.push(0, 3);
        layout.push(3, 2);
        layout.end_document();
        layout.push(10, 1);
        layout.end_document();
        layout.end_document();
        assert_eq!((layout.starts.len(), layout.num_documents()), (2, 3));
        assert_eq!(gather(&layout, 0, 6), [0, 1, 2, 3, 4, 10]);
        assert_eq!(gather(&layout, 4, 6), [4, 10]);
        assert_eq!(gather(&layout, 6, 6), [0u64; 0]);
        assert_eq!((layout.document_at(0), layout.document_at(4), layout.document_at(5)), (0, 0, 1));
    }

    #[test]
    fn append_and_select_keep_documents_in_order() {
        let mut first = Layout::default();
        first.push(0, 4);
        first.end_document();
        let mut second = Layout::default();
        second.push(2, 1);
        second.push(0, 2);
        second.end_document();
        second.push(3, 2);
        second.end_document();
        let mut both = first.clone();
        both.append(&second, 4);
        assert_eq!(both.document_starts(), [0, 4, 7, 9]);
        assert_eq!(gather(&both, 0, 9), [0, 1, 2, 3, 6, 4, 5, 7, 8]);
        let some = both.select([0, 2].into_iter());
        assert_eq!(some.document_starts(), [0, 4, 6]);
        assert_eq!(gather(&some, 0, 6), [0, 1, 2, 3, 7, 8]);
    }
}
