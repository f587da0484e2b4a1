package broker

import (
	"slices"
	"testing"
	"time"
)

func woken(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestWakeWakesThoseWhoWait(t *testing.T) {
	now := time.Now()
	waited, other, issued := NewRequestID(now), NewRequestID(now), NewRequestID(now)
	tests := []struct {
		name                        string
		keys                        []Key
		call, another, watch, facts bool
		touched                     []RequestID
		all                         bool
	}{
		{name: "nothing", keys: []Key{}},
		{name: "the request", keys: []Key{waited, AskKey{}}, call: true, watch: true, touched: []RequestID{waited}},
		{name: "another request", keys: []Key{other}, another: true, watch: true, touched: []RequestID{other}},
		{name: "a request that was issued at once", keys: []Key{issued, LeaseID(issued)}},
		{name: "a break-glass use", keys: []Key{issued, LeaseID(issued), ReviewKey{}}, watch: true, touched: []RequestID{issued}},
		{name: "a fact", keys: []Key{StandingKey{FactPerson, "corp/ana"}}, facts: true},
		{name: "anything", keys: nil, call: true, another: true, watch: true, facts: true, all: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &Broker{}
			b.Facts = newFacts(b)
			b.waiters.takeTouched() // an inbox was read
			one, two := b.waiters.join(waited), b.waiters.join(other)
			changed, stop := b.Watch()
			defer stop()
			Wake(b, tt.keys)
			touched, all := b.waiters.takeTouched()
			if got := []bool{woken(one.changed), woken(two.changed), woken(changed), woken(b.Facts.wake), all}; !slices.Equal(got, []bool{tt.call, tt.another, tt.watch, tt.facts, tt.all}) {
				t.Errorf("got %v (the call, another call, a watcher, the ender of facts, a complete reading)", got)
			}
			if !slices.Equal(touched, tt.touched) {
				t.Errorf("got the touched requests %v, want %v", touched, tt.touched)
			}
		})
	}
}
