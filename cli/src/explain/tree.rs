//! Text as a tree.

/// A line, and what is below it.
#[derive(Debug, Default)]
pub struct Tree {
    text: String,
    below: Vec<Tree>,
}

impl Tree {
    /// A line.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), below: Vec::new() }
    }

    /// With more below it.
    pub fn with(mut self, below: impl IntoIterator<Item = Self>) -> Self {
        self.below.extend(below);
        self
    }

    /// All lines.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.text);
        self.write("", &mut text);
        text
    }

    fn write(&self, indent: &str, text: &mut String) {
        for (index, tree) in self.below.iter().enumerate() {
            let is_last = index + 1 == self.below.len();
            let (branch, rest) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            text.extend([indent, branch, &tree.text, "\n"]);
            tree.write(&format!("{indent}{rest}"), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches() {
        let tree = Tree::new("a")
            .with([Tree::new("b").with([Tree::new("c"), Tree::new("d")]), Tree::new("e").with([Tree::new("f")])]);
        assert_eq!(tree.text(), "a\n├─ b\n│  ├─ c\n│  └─ d\n└─ e\n   └─ f\n");
    }
}
