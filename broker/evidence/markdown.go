package evidence

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// Markdown returns the report as Markdown (CommonMark with GitHub's tables).
func (r *Report) Markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Evidence: %s\n\n", text(r.Title))
	fmt.Fprintf(&b, "- Framework: `%s`, revision %s, <%s>\n", r.Framework, text(r.Revision), r.Source)
	fmt.Fprintf(&b, "- Period: from %s until %s\n", stamp(r.From), stamp(r.To))
	fmt.Fprintf(&b, "- Log: %s\n", name(r.Log.Origin))
	fmt.Fprintf(&b, "- Checkpoint: %d records, root hash `%s`\n", r.Log.Size, r.Log.Root)
	fmt.Fprintf(&b, "- Records of the period: %s\n", r.Log.period())
	fmt.Fprintf(&b, "\nThis command makes the same report again:\n\n    %s\n\n", r.Reproduce)
	b.WriteString("| Control | Title | Figures with records |\n|---|---|---|\n")
	for _, c := range r.Controls {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", text(c.ID), text(c.Title), c.Status())
	}
	for i := range r.Controls {
		r.Controls[i].markdown(&b)
	}
	return b.Bytes()
}

// period describes the records of the period.
func (b *Basis) period() string {
	if b.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("%d, from index %d to %d", b.Count, b.First, b.First+b.Count-1)
}

// Status returns the state of a control in words.
func (c *ControlReport) Status() string {
	switch c.State {
	case OutOfScope:
		return "no evidence (out of scope)"
	case NoEvidence:
		return "no evidence"
	}
	n := 0
	for _, f := range c.Figures {
		if f.Records > 0 {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(c.Figures))
}

func (c *ControlReport) markdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n## %s %s\n\n", text(c.ID), text(c.Title))
	if c.State != HasEvidence {
		fmt.Fprintf(b, "**%s**\n\n", strings.ToUpper(c.Status()[:1])+c.Status()[1:])
	}
	paragraphs(b, "", c.Shows)
	figureTable(b, "Figure", c.Figures)
	figureTable(b, "To explain", c.Exceptions)
	if len(c.Records) > 0 {
		b.WriteString("| Record | Time | Kind | Caused by | About | Outcome | Leaf hash |\n|---:|---|---|---|---|---|---|\n")
		for _, s := range c.Records {
			fmt.Fprintf(b, "| %d | %s | %s | %s | %s | %s | `%s` |\n", s.Index, s.Time.UTC().Format(audit.TimeFormat), s.Kind, name(s.Who), name(s.About), name(s.Outcome), s.LeafHash)
		}
		b.WriteByte('\n')
	}
	paragraphs(b, "Out of scope: ", c.OutOfScope)
}

func paragraphs(b *bytes.Buffer, before string, list []string) {
	for _, p := range list {
		fmt.Fprintf(b, "- %s%s\n", before, text(p))
	}
	if len(list) > 0 {
		b.WriteByte('\n')
	}
}

func figureTable(b *bytes.Buffer, title string, list []FigureReport) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, "| %s | Number | Counts | Records to check |\n|---|---:|---|---|\n", title)
	for i := range list {
		f := &list[i]
		fmt.Fprintf(b, "| %s | %s | `%s` | %s |\n", text(f.Text), f.Number(), f.Selects(), indexes(f.Samples))
	}
	b.WriteByte('\n')
}

// Number returns the value of the figure for people.
func (f *FigureReport) Number() string {
	switch {
	case f.Unit == "ms" && f.Records == 0:
		return "none"
	case f.Unit == "ms":
		return (time.Duration(f.Value) * time.Millisecond).String()
	case f.Records != f.Value:
		return fmt.Sprintf("%d (in %d records)", f.Value, f.Records)
	}
	return strconv.FormatInt(f.Value, 10)
}

// Selects returns the selectors of the figure as a text.
func (f *FigureReport) Selects() string {
	var list []string
	for i := range f.Count {
		list = append(list, f.Count[i].String())
	}
	return strings.Join(list, " or ")
}

// String returns the selector as conditions on traits.
func (s *Selector) String() string {
	var parts []string
	for _, one := range []struct {
		name   string
		values []string
	}{
		{"kind", s.Kind}, {"caller", s.Caller}, {"method", s.Method}, {"outcome", s.Outcome}, {"cause", s.Cause}, {"about", s.About},
		{"source", s.Source}, {"type", s.Type}, {"revocation", s.Revocation}, {"lifetime", s.Lifetime}, {"with", s.With}, {"without", s.Without},
	} {
		if len(one.values) > 0 {
			parts = append(parts, one.name+"="+strings.Join(one.values, ","))
		}
	}
	return strings.Join(parts, " ")
}

func indexes(list []int64) string {
	texts := make([]string, len(list))
	for i, n := range list {
		texts[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(texts, ", ")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// plain are the names that a code span shows as they are.
var plain = regexp.MustCompile(`^[A-Za-z0-9:/._@~%+=, -]+$`)

// name formats a name from a record.
func name(s string) string {
	if plain.MatchString(s) {
		return "`" + s + "`"
	}
	return text(s)
}

// text escapes what Markdown and HTML would read as more than text. Names in records come
// from outside.
func text(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case !strconv.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		case strings.ContainsRune("\\`*_[]<>|#&", r):
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
