package broker

import "context"

// Duties divide background work among the processes that share a store. A duty is work
// that one process does at a time.
//
// Correctness never depends on a duty. A process that was paused can continue work that
// another one has taken over, so what the work writes is compared and set in an Update.
// Duties only keep two processes from doing the same work twice.
type Duties interface {
	// Hold claims those of the duties that no other process has. It does not wait for
	// other processes. The caller calls End when the work is done; the process keeps the
	// duties until another one is to have them.
	Hold(ctx context.Context, names ...string) Hold

	// Lock waits until no other process has the duty. Unlock frees it at once.
	Lock(ctx context.Context, name string) (unlock func(), err error)
}

// A Hold is one piece of work on some duties.
type Hold interface {
	// Context returns a context that ends when the process has lost all of the duties.
	Context() context.Context

	// Has reports whether the process still has the duty. Work that takes long calls it
	// before each step: a process that has stopped doing so loses its duties.
	Has(name string) bool

	End()
}

// Alone are the duties of a process that shares its store with no other one: it has all.
var Alone Duties = alone{}

type alone struct{}

func (alone) Hold(ctx context.Context, _ ...string) Hold { return hold{ctx} }

func (alone) Lock(context.Context, string) (unlock func(), err error) { return func() {}, nil }

type hold struct{ ctx context.Context }

func (h hold) Context() context.Context { return h.ctx }
func (hold) Has(string) bool            { return true }
func (hold) End()                       {}

// OnDuty runs the work if this process has the duty. The work's context ends if the process
// loses the duty; what the work then returns is not an error, because another process does
// the work.
func OnDuty(ctx context.Context, d Duties, name string, work func(context.Context) error) error {
	h := d.Hold(ctx, name)
	defer h.End()
	if !h.Has(name) {
		return nil
	}
	err := work(h.Context())
	if ctx.Err() == nil && h.Context().Err() != nil {
		return nil
	}
	return err
}
