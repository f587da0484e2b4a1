package egress

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Causes of the end of a call.
var (
	errIdle  = errors.New("the host sent nothing for too long")
	errTotal = errors.New("the call took too long")
)

// A watch ends a call that takes too long, or whose host stops sending.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
	timer  *time.Timer // armed while the call waits for the host
	total  *time.Timer
}

func newWatch(ctx context.Context, l limits) *watch {
	w := &watch{idle: l.idle}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(l.idle, func() { w.cancel(errIdle) })
	w.total = time.AfterFunc(l.total, func() { w.cancel(errTotal) })
	return w
}

func (w *watch) waits() { w.timer.Reset(w.idle) }
func (w *watch) rests() { w.timer.Stop() }

func (w *watch) end() {
	w.timer.Stop()
	w.total.Stop()
	w.cancel(context.Canceled)
}

// A requestBody bounds and counts the body of a call.
type requestBody struct {
	io.ReadCloser
	watch    *watch
	left     int64
	sent     atomic.Int64
	tooLarge atomic.Bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.watch.rests() // the caller may be slow
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	b.watch.waits()
	if int64(n) > b.left {
		b.tooLarge.Store(true)
		return 0, errors.New("the body is too large")
	}
	b.left -= int64(n)
	b.sent.Add(int64(n))
	return n, err
}

// A watchedBody is the body of an answer as the host sends it.
type watchedBody struct {
	io.ReadCloser
	watch *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.waits()
	n, err := b.ReadCloser.Read(p)
	b.watch.rests()
	if err != nil {
		// A host that notices the end of the connection can complete its answer before the
		// connection is closed. That is no complete answer.
		if cause := context.Cause(b.watch.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// An answerBody is the body of an answer as the caller reads it: decoded, without the
// credential, bounded and counted.
type answerBody struct {
	body  io.ReadCloser
	left  int64
	limit int64
	done  func(received int64, err error)

	entitlement string
	scrubbed    func() bool
	once        sync.Once
	err         error
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.body.Read(p)
	if int64(n) > b.left {
		n, err = int(b.left), refuse(CodeAnswerTooLarge, nextTooLarge, "The answer is longer than %d bytes", b.limit)
	} else if err != nil && err != io.EOF {
		err = readRefusal(err)
	}
	b.left -= int64(n)
	if err != nil {
		b.err = err
		b.finish(err)
	}
	return n, err
}

func (b *answerBody) Close() error {
	b.finish(nil)
	return b.body.Close()
}

func (b *answerBody) finish(err error) {
	b.once.Do(func() {
		if err == io.EOF {
			err = nil
		}
		b.done(b.limit-b.left, err)
	})
}

const nextTooLarge = "request less, for example a range or a page"

// readRefusal returns the refusal of an answer that could not be read. Its text contains
// nothing of the answer.
func readRefusal(err error) *Refusal {
	var r *Refusal
	switch {
	case errors.As(err, &r):
		return r
	case errors.Is(err, errIdle):
		return refuse(CodeTimeout, "call again", "The host sent nothing for too long")
	case errors.Is(err, errTotal):
		return refuse(CodeTimeout, "request less", "The call took longer than its rule allows")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		r = refuse(CodeTimeout, "call again", "The call was canceled before the answer was complete")
		r.Err = context.Canceled
		return r
	}
	return refuse(CodeUnreachable, "call again", "The answer ended early, or can't be read")
}
