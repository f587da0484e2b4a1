package scrub

import (
	"errors"
	"io"
	"sync"
)

// chunk is the number of bytes that a reader searches at a time.
const chunk = 64 << 10

// maxHeld bounds the bytes that a reader holds back. A secret of a few kilobytes in the
// longest of its forms takes less.
const maxHeld = 4 << 20

// maxIdle bounds the reads in a row that return nothing.
const maxIdle = 100

// ErrHeld means that an answer is the start of a secret in an endless form.
var ErrHeld = errors.New("the answer contains a secret in a form that is too long to be removed")

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// Reader returns a reader of src without the secrets. It passes on what has arrived, up
// to the first byte that may begin a secret. If src ends within a secret, its start is
// masked if it has at least [MinLength] bytes.
func (s *Scrubber) Reader(src io.ReadCloser) io.ReadCloser {
	if s.newest == nil && !s.scrubs() {
		return src
	}
	return &reader{src: src, s: s}
}

// A reader has three parts of text in its buffer: buf[at:ready] is clean, and
// buf[ready:end] waits for what follows.
type reader struct {
	src            io.ReadCloser
	s              *Scrubber
	scan           scan
	buf            []byte
	at, ready, end int
	err            error // of src
	idle           int   // reads in a row that returned nothing
}

// Read reads text without the secrets.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.at == r.ready {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(p, r.buf[r.at:r.ready])
	r.at += n
	if r.at == r.ready && r.err != nil {
		r.release()
	}
	return n, nil
}

// WriteTo writes the text without the secrets, each part as soon as it is known.
func (r *reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		for r.at < r.ready {
			n, err := w.Write(r.buf[r.at:r.ready])
			r.at += n
			total += int64(n)
			if err != nil {
				return total, err
			}
		}
		if r.err != nil {
			r.release()
			if r.err == io.EOF {
				return total, nil
			}
			return total, r.err
		}
		r.fill()
	}
}

// Close closes the source. The buffer stays, because a Read may still use it.
func (r *reader) Close() error { return r.src.Close() }

// release returns the buffer after the last Read.
func (r *reader) release() {
	if b := r.buf; len(b) == chunk {
		chunks.Put(&b)
	}
	r.buf, r.at, r.ready, r.end = nil, 0, 0, 0
}

// fill reads once from the source and searches all that waits. It runs when the clean
// part is used up.
func (r *reader) fill() {
	r.room()
	if r.err != nil {
		return
	}
	n, err := r.src.Read(r.buf[r.end:])
	if r.end += n; n == 0 && err == nil {
		if r.idle++; r.idle == maxIdle {
			err = io.ErrNoProgress
		}
	} else {
		r.idle = 0
	}
	r.err = err
	r.scan.s, r.scan.last = r.s.now(), err != nil
	r.ready = r.scan.run(r.buf[:r.end])
	r.scan.advance(r.ready)
	r.scan.hide(r.ready)
}

// room moves what waits to the front, and makes place for more.
func (r *reader) room() {
	if r.buf == nil {
		r.buf = *chunks.Get().(*[]byte)
	}
	r.end = copy(r.buf, r.buf[r.ready:r.end])
	r.at, r.ready = 0, 0
	if len(r.buf)-r.end >= chunk/2 {
		return
	}
	if len(r.buf) >= maxHeld {
		r.err = ErrHeld
		return
	}
	bigger := make([]byte, 2*len(r.buf))
	copy(bigger, r.buf[:r.end])
	r.buf = bigger
}
