package verify

import (
	"context"
	"iter"
	"runtime"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
)

// A prepared record is an item with everything that can be computed without the
// records before it. That is most of the work, so all cores share it.
type prepared struct {
	audit.Item
	read   error         // the item could not be read; it is the last one
	record audit.Record  // as decoded from the leaf
	leaf   error         // the leaf is not a record
	hash   audit.Digest  // of the leaf
	opened int           // texts that match their commitments
	texts  error         // a text does not match
	terms  *audit.Digest // of the request, see requestState.create; nil: not computed
}

// prepare computes what the other fields hold.
func (p *prepared) prepare() {
	p.record, p.leaf = audit.Decode(p.Leaf)
	p.hash = audit.Digest(tlog.RecordHash(p.Leaf))
	if p.leaf != nil {
		return
	}
	p.opened, p.texts = p.record.CheckStored(p.Openings)
	if r := &p.record; r.Request != nil && r.Caller != nil && r.Decision != nil && r.Decision.Permit {
		terms := r.Request.Sum(r.Requester(), r.Decision)
		p.terms = &terms
	}
}

// prepareLine is prepare for the line of an export, of which n are before it.
func (p *prepared) prepareLine(line []byte, n int64) {
	item, ok := splitLine(line)
	if ok {
		p.Item = item
		if p.prepare(); p.leaf == nil && p.texts == nil {
			return
		}
	}
	// The line is unusual or wrong. The complete parser decides, so that a line means
	// the same to every reader.
	*p = prepared{}
	if p.Item, p.read = parseLine(line, n); p.read == nil {
		p.prepare()
	}
}

// Bounds of a batch. The number of batches that wait or are prepared is at most four
// for each core, so the bounds also bound the memory.
const (
	batchRecords = 256
	batchBytes   = 1 << 20
)

// A batch is a part of the log that one core prepares.
type batch struct {
	first   int64 // number of the records before it
	lines   [][]byte
	text    []byte // of the lines
	size    int    // bytes of all records
	records []prepared
	done    chan struct{}
}

// full reports whether no further record of n bytes fits.
func (b *batch) full(n int) bool {
	return len(b.records) == batchRecords || len(b.records) > 0 && b.size+n > batchBytes
}

func (b *batch) prepare() {
	defer close(b.done)
	for i := range b.records {
		switch p := &b.records[i]; {
		case p.read != nil:
		case len(b.lines) > 0:
			p.prepareLine(b.lines[i], b.first+int64(i))
		default:
			p.prepare()
		}
	}
}

var batches = sync.Pool{New: func() any { return &batch{} }}

// newBatch returns an empty batch, in the memory of one that is no longer used.
func newBatch(first int64) *batch {
	b := batches.Get().(*batch)
	clear(b.records)
	*b = batch{first: first, lines: b.lines[:0], text: b.text[:0], records: b.records[:0], done: make(chan struct{})}
	return b
}

// prepareAll returns the prepared records of a source in their order. A record is
// valid until the next one is requested. The sequence ends after the first error,
// which is that of a sequential reading. When the sequence has ended, nothing reads
// the source any more.
func prepareAll(ctx context.Context, src audit.Source) iter.Seq[*prepared] {
	return func(yield func(*prepared) bool) {
		workers := runtime.GOMAXPROCS(0)
		ordered, work, stop := make(chan *batch, 2*workers), make(chan *batch), make(chan struct{})
		var all sync.WaitGroup
		defer all.Wait()
		defer close(stop)
		all.Go(func() {
			defer close(work)
			defer close(ordered)
			readBatches(ctx, src, func(b *batch) bool { return send(ordered, b, stop) && send(work, b, stop) })
		})
		for range workers {
			all.Go(func() {
				for b := range work {
					b.prepare()
				}
			})
		}
		for b := range ordered {
			<-b.done
			for i := range b.records {
				if p := &b.records[i]; !yield(p) || p.read != nil {
					return
				}
			}
			batches.Put(b)
		}
	}
}

// send sends a batch, and reports false if stop is closed first.
func send(to chan<- *batch, b *batch, stop <-chan struct{}) bool {
	select {
	case to <- b:
		return true
	case <-stop:
		return false
	}
}

// readBatches reads a source and passes on full batches until pass returns false.
func readBatches(ctx context.Context, src audit.Source, pass func(*batch) bool) {
	b, read := newBatch(0), int64(0)
	next := func(n int) bool { // makes room for a record of n bytes
		full := b
		if b.full(n) {
			b = newBatch(read)
		}
		b.size += n
		return b == full || pass(full)
	}
	add := func(p prepared) {
		b.records = append(b.records, p)
		read++
	}
	if export, ok := src.(*ExportFile); ok {
		for line, err := range export.rawLines(ctx) {
			if !next(len(line)) {
				return
			}
			start := len(b.text)
			b.text = append(b.text, line...)
			b.lines = append(b.lines, b.text[start:len(b.text):len(b.text)])
			add(prepared{read: err})
		}
	} else {
		for item, err := range src.Items(ctx) {
			if !next(len(item.Leaf) + len(item.Openings)) {
				return
			}
			add(prepared{Item: item, read: err})
		}
	}
	pass(b)
}
