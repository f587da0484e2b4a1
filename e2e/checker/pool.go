package checker

import (
	"math/rand/v2"
	"sync"
)

// A held is a credential that a client received.
type held struct {
	lease, request, holder, entitlement string
	token                               string
	ended                               bool // by the answer of a call
}

// A filed is a request that waits for people.
type filed struct{ id, digest, holder string }

// A pool is what the clients of a run share: credentials and requests that any of them may
// use next.
type pool struct {
	mu      sync.Mutex
	held    []*held
	filed   []*filed
	blocked map[string]bool
}

// maxPool bounds each list of a pool. The oldest entries make room.
const maxPool = 300

func (p *pool) keep(h *held) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held = append(p.held, h); len(p.held) > maxPool {
		p.held = p.held[len(p.held)-maxPool:]
	}
}

func (p *pool) file(f *filed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filed = append(p.filed, f); len(p.filed) > maxPool {
		p.filed = p.filed[len(p.filed)-maxPool:]
	}
}

// any returns a random credential that suits, or nil. Recent ones are likelier, because
// other clients use them at the same time.
func (p *pool) any(r *rand.Rand, suits func(*held) bool) *held {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*held
	for _, h := range p.held {
		if suits(h) {
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1-r.IntN(min(len(list), 1+r.IntN(len(list))))]
}

// anyFiled returns a random request that waits for people, or nil.
func (p *pool) anyFiled(r *rand.Rand) *filed {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.filed) == 0 {
		return nil
	}
	recent := p.filed[max(0, len(p.filed)-8):]
	return recent[r.IntN(len(recent))]
}

// end notes that the credential of a lease has ended.
func (p *pool) end(lease string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.held {
		if h.lease == lease {
			h.ended = true
		}
	}
}

// all returns the credentials and requests.
func (p *pool) all() ([]held, []filed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var credentials []held
	var requests []filed
	for _, h := range p.held {
		credentials = append(credentials, *h)
	}
	for _, f := range p.filed {
		requests = append(requests, *f)
	}
	return credentials, requests
}

// block reports whether the holder was not blocked by a client before.
func (p *pool) block(holder string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked == nil {
		p.blocked = map[string]bool{}
	}
	before := p.blocked[holder]
	p.blocked[holder] = true
	return !before
}

func (p *pool) unblock(holder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.blocked, holder)
}
