//! How the inventory's JSON is laid out.

use std::io::{self, Write};

use serde_json::ser::Formatter;

/// Indented for people down to what is in a group's lists, each device one line: so `grep` finds all of a device, and thousands can be looked through.
#[derive(Default)]
pub(super) struct Layout {
    depth: usize,
    /// Whether what ends next has anything in it.
    filled: bool,
}

impl Layout {
    /// As deep as the fields of a volume group and what is in their lists.
    const LINES: usize = 4;
    const INDENT: [u8; 1 + 2 * Self::LINES] = *b"\n        ";

    fn begin(&mut self, out: &mut (impl Write + ?Sized), bracket: u8) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(&[bracket])
    }

    fn end(&mut self, out: &mut (impl Write + ?Sized), bracket: u8) -> io::Result<()> {
        let broken = self.filled && self.depth <= Self::LINES;
        self.depth = self.depth.saturating_sub(1);
        if broken {
            self.line(out)?;
        }
        // What it was in has at least this one.
        self.filled = true;
        out.write_all(&[bracket])
    }

    /// Before each thing in a list or object.
    fn next(&mut self, out: &mut (impl Write + ?Sized), first: bool) -> io::Result<()> {
        self.filled = true;
        match (self.depth <= Self::LINES, first) {
            (true, true) => self.line(out),
            (true, false) => {
                out.write_all(b",")?;
                self.line(out)
            }
            (false, true) => Ok(()),
            (false, false) => out.write_all(b", "),
        }
    }

    fn line(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let indent = Self::INDENT.get(..=2 * self.depth);
        out.write_all(indent.unwrap_or(&Self::INDENT))
    }
}

impl Formatter for Layout {
    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b'[')
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b']')
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b'{')
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b'}')
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::{Serializer, json};

    use super::*;

    #[test]
    fn it_is_indented_down_to_a_device_which_is_one_line() {
        let all = json!({
            "a": [{ "devices": [{ "dev": "8:0", "table": ["x", "y"], "uses": [], "z": {} }, {}], "none": [] }],
            "b": { "c": null },
            "d": [],
        });
        let mut out = Vec::new();
        let mut to = Serializer::with_formatter(&mut out, Layout::default());
        all.serialize(&mut to).unwrap();
        let expected = r#"{
  "a": [
    {
      "devices": [
        {"dev": "8:0", "table": ["x", "y"], "uses": [], "z": {}},
        {}
      ],
      "none": []
    }
  ],
  "b": {
    "c": null
  },
  "d": []
}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
