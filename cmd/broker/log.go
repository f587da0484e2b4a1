package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// How long and how many bytes of log lines wait to be written together.
const (
	logDelay = 100 * time.Millisecond
	logSize  = 32 << 10
)

// A logBuffer collects log lines: under load, a write for each would cost as much as
// encoding it. The first line after a pause is written at once, and later ones at the
// latest after logDelay. It is safe for concurrent use.
//
// Only a process that is killed can lose lines, those of its last logDelay. The lines
// of state changes, warnings and errors do not wait (see promptly).
type logBuffer struct {
	w io.Writer

	mu      sync.Mutex
	lines   []byte
	written time.Time // the last write
	timer   bool      // a flush is due
}

// Write implements io.Writer for one line.
func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line...)
	switch {
	case len(b.lines) >= logSize || time.Since(b.written) >= logDelay:
		return len(line), b.write()
	case !b.timer:
		b.timer = true
		time.AfterFunc(logDelay, b.flush)
	}
	return len(line), nil
}

// flush writes the lines that wait.
func (b *logBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = false
	_ = b.write() // there is no place to report it
}

func (b *logBuffer) write() error {
	if len(b.lines) == 0 {
		return nil
	}
	_, err := b.w.Write(b.lines)
	b.lines, b.written = b.lines[:0], time.Now()
	return err
}

// promptly is a handler whose events are written at once, except for those of answered
// requests, of which there are many.
type promptly struct {
	slog.Handler
	buffer *logBuffer
}

// Handle implements slog.Handler.
func (p promptly) Handle(ctx context.Context, r slog.Record) error {
	err := p.Handler.Handle(ctx, r)
	if r.Level > slog.LevelInfo || r.Message != "request" {
		p.buffer.flush()
	}
	return err
}

// WithAttrs implements slog.Handler.
func (p promptly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return promptly{p.Handler.WithAttrs(attrs), p.buffer}
}

// WithGroup implements slog.Handler.
func (p promptly) WithGroup(name string) slog.Handler {
	return promptly{p.Handler.WithGroup(name), p.buffer}
}

// newLogger returns a logger, and a function that writes the lines that wait, which its
// user calls at the end.
func newLogger(w io.Writer, format string, level slog.Level) (log *slog.Logger, flush func()) {
	buffer, opts := &logBuffer{w: w}, &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewJSONHandler(buffer, opts)
	if format == "text" {
		h = slog.NewTextHandler(buffer, opts)
	}
	return slog.New(promptly{h, buffer}), buffer.flush
}

// An unquoted is the output of the standard logger, which only libraries use. It cuts each
// line off before its first quotation: net/http quotes what a host sends after the end of
// its answer, which can be a credential.
type unquoted struct{ w io.Writer }

// Write implements io.Writer for one line.
func (u unquoted) Write(line []byte) (int, error) {
	kept := line
	if at := bytes.IndexAny(line, "\"`"); at >= 0 {
		kept = append(bytes.Clone(line[:at]), "[removed]\n"...)
	}
	if _, err := u.w.Write(kept); err != nil {
		return 0, err
	}
	return len(line), nil
}
