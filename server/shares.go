package server

import (
	"net/netip"
)

// One party may hold many networks: a site has an IPv6 /48 with 65,536 of them. So what
// networks use is also counted in the wider networks that contain them. When something
// runs out, it is taken from the network with the highest load: its own use, or the use
// of a wider network divided by the weight of that, whichever is higher. So a /48 gets at
// most as much as four single networks that want the same, however many networks of it
// take part.

// widths are the wider networks that count, from narrow to wide.
var (
	widths4 = []width{{24, 4}, {16, 16}}
	widths6 = []width{{56, 2}, {48, 4}, {32, 16}}
)

// A width is the length of a prefix and how many single networks it may use as much as.
type width struct{ bits, weight int }

// single is the load of a network of its own for each unit that it uses. It is a multiple
// of all weights.
const single = 16

// A share is what a network uses, alone and as a part of wider networks.
type share struct {
	network netip.Prefix
	parts   [4]*sharePart // from narrow to wide; nil: no more
}

// A sharePart is the use of one prefix.
type sharePart struct {
	prefix  netip.Prefix
	perUnit int // load
	used    int
	members int     // shares with this part
	finish  float64 // see turns.next
}

// shares holds the parts of all shares. It is not safe for concurrent use.
type shares map[netip.Prefix]*sharePart

// join returns a share for a network. The caller calls leave at its end.
func (s shares) join(network netip.Prefix) share {
	joined := share{network: network}
	joined.parts[0] = s.part(network, single)
	widths := widths6
	if network.Addr().Is4() {
		widths = widths4
	}
	for i, w := range widths {
		if wide, err := network.Addr().Prefix(w.bits); err == nil && network.IsValid() {
			joined.parts[i+1] = s.part(wide, single/w.weight)
		}
	}
	return joined
}

func (s shares) part(prefix netip.Prefix, perUnit int) *sharePart {
	p := s[prefix]
	if p == nil {
		p = &sharePart{prefix: prefix, perUnit: perUnit}
		s[prefix] = p
	}
	p.members++
	return p
}

// leave forgets the parts that no other share has. The share uses nothing then.
func (s shares) leave(sh share) {
	for _, p := range sh.parts {
		if p == nil {
			return
		}
		if p.members--; p.members == 0 {
			delete(s, p.prefix)
		}
	}
}

// use adds to what the network uses, or subtracts from it.
func (sh share) use(units int) {
	for _, p := range sh.parts {
		if p != nil {
			p.used += units
		}
	}
}

// heavier reports whether sh has a higher load than other would have after the use of
// more units. Wider networks that contain both do not count.
func (sh share) heavier(other share, units int) bool {
	load, others := 0, 0
	for i, p := range sh.parts {
		o := other.parts[i]
		if p == o {
			break
		}
		if p != nil {
			load = max(load, p.used*p.perUnit)
		}
		if o != nil {
			others = max(others, (o.used+units)*o.perUnit)
		}
	}
	return load > others
}

// finish returns when the next turn of the network finishes.
func (sh share) finish() float64 { return sh.finishOf(len(sh.parts)) }

// finishOf returns when it finishes as far as the n narrowest parts are concerned.
func (sh share) finishOf(n int) (at float64) {
	for _, p := range sh.parts[:n] {
		if p != nil {
			at = max(at, p.finish)
		}
	}
	return at
}

// earlier reports whether the next turn of sh finishes before that of other. Networks that
// wait for the same wide one are equal there, so their narrower parts decide: they take
// turns with each other.
func (sh share) earlier(other share) bool {
	for n := len(sh.parts); n > 0; n-- {
		own, others := sh.finishOf(n), other.finishOf(n)
		if own != others {
			return own < others
		}
	}
	return false
}

// arrive sets the finish of a network that has nothing to do before now.
func (sh share) arrive(now float64) {
	for _, p := range sh.parts {
		if p != nil && p.finish == 0 {
			p.finish = now + float64(p.perUnit)/single
		}
	}
}

// serve moves the finish behind that of a turn.
func (sh share) serve(now float64) {
	for _, p := range sh.parts {
		if p != nil {
			p.finish = max(p.finish, now) + float64(p.perUnit)/single
		}
	}
}
