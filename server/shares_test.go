package server

import (
	"fmt"
	"net/netip"
	"testing"

	"accessbroker.internal/server/inbound"
)

// holders returns many addresses of different networks that one party may hold.
func holders(name string, n int) string {
	switch name {
	case "an IPv6 /56":
		return fmt.Sprintf("2001:db8:1:%x::1", n%256)
	case "an IPv6 /48":
		return fmt.Sprintf("2001:db8:1:%x::1", 64*n)
	case "an IPv6 /32":
		return fmt.Sprintf("2001:db8:%x::1", n)
	case "an IPv4 /24":
		return fmt.Sprintf("192.0.2.%d", n%256)
	}
	return fmt.Sprintf("198.18.%d.%d", n/256, n%256) // a /16
}

var holderNames = []string{"an IPv6 /56", "an IPv6 /48", "an IPv6 /32", "an IPv4 /24", "an IPv4 /16"}

// A holder of a large prefix that fills the queue, with one call for each of its networks
// or with many, does not shut out others: their calls may wait, and get their turns soon.
func TestTurnsOfManyNetworksGiveWay(t *testing.T) {
	t.Parallel()
	for _, name := range holderNames {
		t.Run(name, func(t *testing.T) {
			l := verifyLimits()
			l.atOnce = 1
			turns := newTurns(l)
			turns.mu.Lock()
			defer turns.mu.Unlock()
			for i := range 4 * l.most { // more than fit
				turns.wait(senderOf(holders(name, i%1024), i/1024))
			}
			if turns.waiting != l.most {
				t.Fatalf("%d calls wait, want the queue to be full with %d", turns.waiting, l.most)
			}
			var fresh []*waitingCall
			for i := range 40 {
				call := turns.wait(senderOf(fmt.Sprintf("2001:db9:%x::1", i/4), i))
				if call == nil {
					t.Fatalf("fresh call %d may not wait", i)
				}
				fresh = append(fresh, call)
			}
			for i := range 1024 {
				turns.wait(senderOf(holders(name, i), "again"))
			}
			if turns.waiting > l.most {
				t.Errorf("%d calls wait, want at most %d", turns.waiting, l.most)
			}
			served, rest := 0, len(fresh)
			for ; rest > 0 && served < l.most; served++ {
				turns.dispatch()
				turns.running = 0
				for _, call := range fresh {
					select {
					case mayRun := <-call.ready:
						if rest--; !mayRun {
							t.Fatal("a fresh call gave way to the holder of the prefix")
						}
					default:
					}
				}
			}
			// The ten fresh networks share a /32, with a weight of 16, as the holder's
			// networks do at most.
			if most := 120; rest > 0 || served > most {
				t.Errorf("after %d turns %d fresh calls still wait, want none after %d", served, rest, most)
			}
			for len(turns.order) > 0 {
				turns.dispatch()
				turns.running = 0
			}
			if len(turns.shares) != 0 || turns.waiting != 0 {
				t.Errorf("at the end %d prefixes have a share and %d calls wait", len(turns.shares), turns.waiting)
			}
		})
	}
}

// Neighbours of a holder, in the same wider network, are not counted with it.
func TestTurnsOfNeighbours(t *testing.T) {
	t.Parallel()
	l := verifyLimits()
	l.atOnce = 1
	turns := newTurns(l)
	turns.mu.Lock()
	defer turns.mu.Unlock()
	for i := range 1024 {
		turns.wait(senderOf(holders("an IPv6 /48", i), "x"))
	}
	for _, address := range []string{"2001:db8:2::1", "2001:db8:2:8000::1", "2001:db8:ffff::1"} { // other /48s of the same /32
		if turns.wait(senderOf(address, "x")) == nil {
			t.Errorf("a call from %s may not wait", address)
		}
	}
	if got, want := turns.shares[netip.MustParsePrefix("2001:db8:1::/48")].used, 1024-3; got != want {
		t.Errorf("the /48 has %d waiting calls, want %d", got, want)
	}
}

// A single network with many calls does not profit from a wider network with many.
func TestTurnsOfOneNetworkAgainstMany(t *testing.T) {
	t.Parallel()
	l := verifyLimits()
	l.atOnce = 1
	turns := newTurns(l)
	turns.mu.Lock()
	defer turns.mu.Unlock()
	for i := range l.most {
		turns.wait(senderOf(fmt.Sprintf("10.1.%d.%d", i/256, i%256), "x"))
	}
	for i := range 1024 {
		turns.wait(senderOf("10.2.0.5", i))
	}
	if got, most := turns.shares[netip.MustParsePrefix("10.2.0.5/32")].used, l.most/16; got > most || got == 0 {
		t.Errorf("the single network has %d waiting calls, want 1 to %d", got, most)
	}
	if turns.waiting != l.most {
		t.Errorf("%d calls wait, want %d", turns.waiting, l.most)
	}
}

// Unfinished bodies from many networks of one holder give way to a larger one from
// elsewhere.
func TestBudgetTakesFromTheHolderOfManyNetworks(t *testing.T) {
	t.Parallel()
	for _, name := range holderNames {
		b, expelled := newBudget(1<<20), 0
		for i := range 256 {
			b.begin(inbound.Network(netip.MustParseAddr(holders(name, i))), func() { expelled++ }).grow(8 << 10)
		}
		h := b.begin(inbound.Network(netip.MustParseAddr("2001:db9::1")), func() { t.Errorf("%s: the body from elsewhere gave way", name) })
		for range 7 {
			if !h.grow(8 << 10) {
				break
			}
		}
		if want := 256 + 7 - 128; expelled != want {
			t.Errorf("%s: %d bodies gave way, want %d", name, expelled, want)
		}
	}
}
