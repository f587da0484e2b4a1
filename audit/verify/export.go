package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
	"accessbroker.internal/internal/strictjson"
)

// exportFormat is the version of the format of an export: JSON Lines, a header
// and then one line per record. A line contains the leaf byte for byte, so that
// people and jq can read it and a verifier can hash it.
const exportFormat = 1

type exportHeader struct {
	Format      int          `json:"accessbroker_log"`
	Origin      string       `json:"origin"`
	Key         string       `json:"key"`
	Size        int64        `json:"size"`
	Root        audit.Digest `json:"root"`
	Checkpoints []string     `json:"checkpoints"`
}

type exportLine struct {
	Index    int64           `json:"index"`
	Hash     audit.Digest    `json:"hash"`
	Leaf     json.RawMessage `json:"leaf"`
	Openings json.RawMessage `json:"openings,omitempty"`
}

// Export writes a log as JSON Lines.
func Export(ctx context.Context, w io.Writer, src audit.Source) error {
	h, err := src.Header(ctx)
	if err != nil {
		return fmt.Errorf("exporting the log: %w", err)
	}
	out := bufio.NewWriterSize(w, 1<<16)
	if err := json.NewEncoder(out).Encode(exportHeader{exportFormat, h.Origin, h.Key, h.Size, h.Root, h.Checkpoints}); err != nil {
		return fmt.Errorf("exporting the log: %w", err)
	}
	for item, err := range src.Items(ctx) {
		if err != nil {
			return fmt.Errorf("exporting the log: %w", err)
		}
		if _, err := out.Write(appendLine(nil, &item)); err != nil {
			return fmt.Errorf("exporting the log: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("exporting the log: %w", err)
	}
	return nil
}

// appendLine appends the line of a record. It does not use encoding/json, which
// would change the bytes of the leaf.
func appendLine(b []byte, it *audit.Item) []byte {
	var hash audit.Digest
	copy(hash[:], it.Hashes)
	b = fmt.Appendf(b, `{"index":%d,"hash":"%s","leaf":`, it.Index, hash)
	b = append(b, it.Leaf...)
	if len(it.Openings) > 0 {
		b = append(b, `,"openings":`...)
		b = append(b, it.Openings...)
	}
	return append(b, "}\n"...)
}

// maxLine is the maximum length of a line: a leaf, its openings and the rest of
// the line.
const maxLine = audit.MaxLeaf + audit.MaxOpenings + 4096

// An ExportFile is an audit.Source that reads an export. It is not safe for
// concurrent use.
type ExportFile struct {
	lines  *bufio.Scanner
	header audit.Header
}

// OpenExport reads the header of an export. Items reads the rest.
func OpenExport(r io.Reader) (*ExportFile, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var h exportHeader
	if !lines.Scan() {
		return nil, fmt.Errorf("reading the export's header: %w", orEOF(lines.Err()))
	}
	if err := strict(lines.Bytes(), &h); err != nil {
		return nil, fmt.Errorf("reading the export's header: %w", err)
	}
	if h.Format != exportFormat {
		return nil, fmt.Errorf("reading the export's header: its format is %d, this program reads format %d", h.Format, exportFormat)
	}
	return &ExportFile{lines, audit.Header{Origin: h.Origin, Key: h.Key, Size: h.Size, Root: h.Root, Checkpoints: h.Checkpoints}}, nil
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// strict decodes one JSON object, which parsers must not read differently.
func strict(b []byte, into any) error {
	if err := strictjson.Check(b, 16); err != nil {
		return fmt.Errorf("the line %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// Header implements audit.Source.
func (f *ExportFile) Header(context.Context) (audit.Header, error) { return f.header, nil }

// Items implements audit.Source.
func (f *ExportFile) Items(ctx context.Context) iter.Seq2[audit.Item, error] {
	return func(yield func(audit.Item, error) bool) {
		n := int64(0)
		for line, err := range f.rawLines(ctx) {
			item := audit.Item{}
			if err == nil {
				item, err = parseLine(line, n)
			}
			if !yield(item, err) || err != nil {
				return
			}
			n++
		}
	}
}

// rawLines returns the lines after the header. A line is valid until the next one is
// read. The sequence ends after the first error.
func (f *ExportFile) rawLines(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for n := int64(0); f.lines.Scan(); n++ {
			if err := ctx.Err(); err != nil {
				yield(nil, lineError(n, err))
				return
			}
			if !yield(f.lines.Bytes(), nil) {
				return
			}
		}
		if err := f.lines.Err(); err != nil {
			yield(nil, fmt.Errorf("reading the export: %w", err))
		}
	}
}

func lineError(n int64, err error) error {
	return fmt.Errorf("reading the line of record %d: %w", n, err)
}

// parseLine decodes the line of a record, of which n are before it. The item shares
// the bytes of the line.
func parseLine(line []byte, n int64) (audit.Item, error) {
	var parsed exportLine
	if err := strict(line, &parsed); err != nil {
		return audit.Item{}, lineError(n, err)
	}
	return audit.Item{Index: parsed.Index, Leaf: parsed.Leaf, Hashes: parsed.Hash[:], Openings: parsed.Openings}, nil
}

// splitLine splits a line that has exactly the form of appendLine. It does not check
// that the leaf and the openings are JSON, so the caller must decode both. It reports
// false for every other form, which parseLine can read.
func splitLine(line []byte) (item audit.Item, ok bool) {
	rest, ok1 := bytes.CutPrefix(line, []byte(`{"index":`))
	digits, rest, ok2 := bytes.Cut(rest, []byte(`,"hash":"`))
	if !ok1 || !ok2 || len(digits) > 18 || len(rest) < 2*tlog.HashSize {
		return item, false
	}
	index, err := strconv.ParseUint(string(digits), 10, 63)
	if err != nil || strconv.FormatUint(index, 10) != string(digits) {
		return item, false
	}
	var hash audit.Digest
	if hash.UnmarshalText(rest[:2*tlog.HashSize]) != nil {
		return item, false
	}
	rest, ok1 = bytes.CutPrefix(rest[2*tlog.HashSize:], []byte(`","leaf":`))
	rest, ok2 = bytes.CutSuffix(rest, []byte("}"))
	if !ok1 || !ok2 {
		return item, false
	}
	// Inside a string, the quotes of this separator would be escaped.
	leaf, openings, some := bytes.Cut(rest, []byte(`,"openings":`))
	if some && len(openings) == 0 {
		return item, false
	}
	return audit.Item{Index: int64(index), Leaf: leaf, Hashes: hash[:], Openings: openings}, true
}
