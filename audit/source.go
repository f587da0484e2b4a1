package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
)

// A Source is a whole log to be verified or exported: a database or an export.
type Source interface {
	// Header gives what the log says of itself.
	Header(ctx context.Context) (Header, error)
	// Items gives the records in the order of their index, as many as the
	// header says. It can be ranged over once. It ends with the first error.
	Items(ctx context.Context) iter.Seq2[Item, error]
}

// A Header is what a log says of itself.
type Header struct {
	Origin      string
	Key         string   // its public key, as a signed-note verifier key
	Size        int64    // number of records
	Root        Digest   // of the tree over them
	Checkpoints []string // signed notes, of any size up to Size
}

// An Item is one record as it is stored.
type Item struct {
	Index    int64
	Leaf     []byte
	Hashes   []byte // those of Tree.Append, or at least the first
	Openings []byte // nil: there are none, or they were erased
}

// An export is JSON Lines: the header, then a line a record. The leaf stands in
// its line byte by byte as it was hashed, so that people and jq can read it,
// and a verifier can hash it.

// exportFormat is the version of the export's lines.
const exportFormat = 1

type exportHeader struct {
	Format      int      `json:"accessbroker_log"`
	Origin      string   `json:"origin"`
	Key         string   `json:"key"`
	Size        int64    `json:"size"`
	Root        Digest   `json:"root"`
	Checkpoints []string `json:"checkpoints"`
}

type exportLine struct {
	Index    int64           `json:"index"`
	Hash     Digest          `json:"hash"`
	Leaf     json.RawMessage `json:"leaf"`
	Openings json.RawMessage `json:"openings,omitempty"`
}

// Export writes the log as JSON Lines.
func Export(ctx context.Context, w io.Writer, src Source) error {
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
		if _, err := out.Write(item.appendLine(nil)); err != nil {
			return fmt.Errorf("exporting the log: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("exporting the log: %w", err)
	}
	return nil
}

// appendLine writes the item as a line. encoding/json would respell the leaf.
func (it *Item) appendLine(b []byte) []byte {
	var hash Digest
	copy(hash[:], it.Hashes)
	b = fmt.Appendf(b, `{"index":%d,"hash":"%s","leaf":`, it.Index, hash)
	b = append(b, it.Leaf...)
	if len(it.Openings) > 0 {
		b = append(b, `,"openings":`...)
		b = append(b, it.Openings...)
	}
	return append(b, "}\n"...)
}

// maxLine bounds a line of an export: a leaf, its openings, and a little.
const maxLine = MaxLeaf + maxOpenings + 4096

// An ExportFile is the Source that reads an export. It is not safe for concurrent use.
type ExportFile struct {
	lines  *bufio.Scanner
	header Header
}

// OpenExport reads the header of an export; Items will read the rest.
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
		return nil, fmt.Errorf("reading the export's header: it is of format %d, this program reads %d", h.Format, exportFormat)
	}
	return &ExportFile{lines, Header{h.Origin, h.Key, h.Size, h.Root, h.Checkpoints}}, nil
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// Header implements Source.
func (f *ExportFile) Header(context.Context) (Header, error) { return f.header, nil }

// Items implements Source.
func (f *ExportFile) Items(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for n := int64(0); f.lines.Scan(); n++ {
			var line exportLine
			err := ctx.Err()
			if err == nil {
				err = strict(f.lines.Bytes(), &line)
			}
			if err != nil {
				yield(Item{}, fmt.Errorf("reading the line of record %d: %w", n, err))
				return
			}
			if !yield(Item{line.Index, line.Leaf, line.Hash[:], line.Openings}, nil) {
				return
			}
		}
		if err := f.lines.Err(); err != nil {
			yield(Item{}, fmt.Errorf("reading the export: %w", err))
		}
	}
}
