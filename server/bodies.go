package server

import (
	"container/list"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/inbound"
)

// Bodies of calls. A body that arrives before its caller is known costs the broker memory
// for as long as the caller likes. So a call with a proof in its header is judged before
// any of its body is read, and the other bodies share a budget.

const (
	// callCost is what a call costs while its body arrives: goroutine, header, buffers.
	callCost = 16 << 10

	firstRead = 2 << 10 // bytes; a form with a JWT-SVID has about 1,200

	defaultUnprovedBytes = 32 << 20
)

// A budget bounds the bytes of calls whose callers are not known yet. If it is exceeded,
// the network with the highest load loses its oldest call (see share): an honest body
// arrives within a round trip, and a sender of unfinished bodies competes with itself. It
// is safe for concurrent use.
type budget struct {
	most int

	mu       sync.Mutex
	used     int                      // guarded by mu
	networks map[netip.Prefix]*shared // guarded by mu
	shares   shares                   // guarded by mu; of bytes
}

// shared is the part of a budget that a network uses.
type shared struct {
	share share
	holds *list.List // of *hold, the oldest first
}

// A hold is the part of a budget that a call uses.
type hold struct {
	budget  *budget
	network netip.Prefix
	expel   func() // ends the call's reading; called with budget.mu held, and never after end

	element  *list.Element // guarded by budget.mu; nil after the end
	used     int           // guarded by budget.mu
	expelled bool          // guarded by budget.mu
}

func newBudget(most int) *budget {
	return &budget{most: most, networks: map[netip.Prefix]*shared{}, shares: shares{}}
}

// begin adds a call without bytes.
func (b *budget) begin(network netip.Prefix, expel func()) *hold {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.networks[network]
	if !ok {
		s = &shared{share: b.shares.join(network), holds: list.New()}
		b.networks[network] = s
	}
	h := &hold{budget: b, network: network, expel: expel}
	h.element = s.holds.PushBack(h)
	return h
}

// grow takes bytes for the call, if necessary from others. It reports whether the call
// may continue. After end, the caller is known and its bytes do not count.
//
// The lock is held while calls are expelled, so that none of them can return from its
// handler meanwhile: net/http does not allow the use of a response after that.
func (h *hold) grow(bytes int) bool {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.element != nil {
		h.used += bytes
		b.used += bytes
		b.networks[h.network].share.use(bytes)
	}
	for b.used > b.most {
		victim := b.victim()
		b.drop(victim)
		victim.expelled = true
		victim.expel()
	}
	return !h.expelled
}

// victim returns the oldest call of the network with the highest load.
func (b *budget) victim() *hold {
	var most *shared
	for _, s := range b.networks {
		if most == nil || s.share.heavier(most.share, 0) {
			most = s
		}
	}
	return most.holds.Front().Value.(*hold)
}

// end returns the bytes to the budget. It may be called more than once.
func (h *hold) end() {
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	h.budget.drop(h)
}

func (b *budget) drop(h *hold) {
	if h.element == nil {
		return
	}
	s := b.networks[h.network]
	s.holds.Remove(h.element)
	s.share.use(-h.used)
	b.used -= h.used
	h.element = nil
	if s.holds.Len() == 0 {
		b.shares.leave(s.share)
		delete(b.networks, h.network)
	}
}

// wasExpelled reports whether the call lost its bytes to others.
func (h *hold) wasExpelled() bool {
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	return h.expelled
}

// holdBody takes the call's part of the budget, unless its caller is known.
func (c *call) holdBody() error {
	if c.who.ID != "" || c.held != nil || c.r.Body == nil || c.r.Body == http.NoBody {
		return nil
	}
	control := http.NewResponseController(c.w.ResponseWriter)
	c.held = c.s.bodies.begin(inbound.Network(c.from), func() { _ = control.SetReadDeadline(longAgo) })
	c.leaving = append(c.leaving, c.held.end)
	return c.growBody(callCost)
}

// unreadWait is how long an answer waits for a body that the call has not read.
const unreadWait = time.Second

// boundUnread bounds the time of an answer before the body. Before it sends such an
// answer over HTTP/1.1 on a connection that stays open, net/http reads up to 256 KiB of
// the body. After the deadline, it sends the answer and closes the connection.
func (c *call) boundUnread() {
	if c.r.ProtoMajor == 1 && c.r.ContentLength != 0 && c.body == nil && (c.held == nil || !c.held.wasExpelled()) {
		_ = http.NewResponseController(c.w.ResponseWriter).SetReadDeadline(time.Now().Add(unreadWait))
	}
}

// longAgo is a deadline that has passed: setting it waits for no one.
var longAgo = time.Unix(1, 0)

// growBody counts bytes that the call is about to read.
func (c *call) growBody(bytes int) error {
	if c.held == nil || c.held.grow(bytes) {
		return nil
	}
	return errBodiesFull
}

var errBodiesFull = &broker.Refusal{Err: broker.ErrSlowDown, Detail: "too many calls with unfinished bodies: send the whole body at once", Retry: time.Second}

// readBody reads the whole body and checks its media type unless it is empty. What the
// header says about the body is judged first.
func (c *call) readBody(mediaType string) error {
	declared := c.r.Header.Values("Content-Type")
	if err := checkEncoding(c.r.Header.Values("Content-Encoding")); err != nil {
		return err
	}
	switch {
	case c.r.ContentLength > maxBody:
		return errTooLarge
	case c.r.ContentLength != 0 && len(declared) > 0:
		if err := checkMediaType(declared, mediaType); err != nil {
			return err
		}
	}
	if err := c.holdBody(); err != nil {
		return err
	}
	body, err := c.readAll(http.MaxBytesReader(c.w.ResponseWriter, c.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return errTooLarge
	case err != nil && (errors.Is(err, errBodiesFull) || c.held != nil && c.held.wasExpelled()):
		return errBodiesFull
	case err != nil:
		return refuse(broker.ErrInvalidRequest, "the body is incomplete")
	}
	if c.body = body; len(body) == 0 {
		return nil
	}
	return checkMediaType(declared, mediaType)
}

// memories hold unused memory for bodies of up to firstRead bytes.
var memories = sync.Pool{New: func() any { return new([firstRead]byte) }}

// memory returns memory for a body, which is used again after the call.
func (c *call) memory(size int) []byte {
	c.bodyMemory = memories.Get().(*[firstRead]byte)
	return c.bodyMemory[:0:size]
}

// forgetBody clears the memory of the body, which may hold a secret, and keeps it for
// another call. Nothing may refer to the body any more.
func (c *call) forgetBody() {
	if c.bodyMemory != nil {
		clear(c.bodyMemory[:])
		memories.Put(c.bodyMemory)
		c.body, c.bodyMemory = nil, nil
	}
}

// readAll is io.ReadAll within the budget.
func (c *call) readAll(r io.Reader) ([]byte, error) {
	size := firstRead
	if n := c.r.ContentLength; n >= 0 && n < firstRead {
		size = int(n) + 1 // one more, so that the end is read without growing
	}
	if err := c.growBody(size); err != nil {
		return nil, err
	}
	body := c.memory(size)
	for {
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return body, err
		case len(body) < cap(body):
			continue
		}
		if err := c.growBody(cap(body)); err != nil {
			return nil, err
		}
		body = append(make([]byte, 0, 2*cap(body)), body...)
	}
}

// A heldBody is the body of a call to an open Handler, within the budget.
type heldBody struct {
	io.ReadCloser
	call *call
}

func (b heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if full := b.call.growBody(n); full != nil {
		return 0, full
	}
	return n, err
}
