package server

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

func TestAdmissionRate(t *testing.T) {
	t.Parallel()
	a := newAdmission(50, 20)
	now := time.Unix(1000, 0)
	a.clock = func() time.Time { return now }
	enter := func(id string) error {
		leave, err := a.enter(id)
		if err == nil {
			leave()
		}
		return err
	}
	for i := range 50 {
		if err := enter("spiffe://a.test/x"); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	err := enter("spiffe://a.test/x")
	if !errors.Is(err, broker.ErrSlowDown) || refusalOf(err).Retry <= 0 || refusalOf(err).Retry > time.Second {
		t.Fatalf("call 51: %v, retry in %v", err, refusalOf(err).Retry)
	}
	if err := enter("spiffe://a.test/y"); err != nil {
		t.Errorf("another identity: %v", err)
	}
	now = now.Add(20 * time.Millisecond)
	if err := enter("spiffe://a.test/x"); err != nil {
		t.Errorf("20 ms later: %v", err)
	}
}

func TestAdmissionConcurrency(t *testing.T) {
	t.Parallel()
	a := newAdmission(1000, 2)
	first, err1 := a.enter("x")
	_, err2 := a.enter("x")
	if _, err := a.enter("x"); err1 != nil || err2 != nil || !errors.Is(err, broker.ErrSlowDown) {
		t.Fatalf("%v, %v, then %v", err1, err2, err)
	}
	first()
	if _, err := a.enter("x"); err != nil {
		t.Errorf("after one left: %v", err)
	}
}

func TestAdmissionCacheIsBounded(t *testing.T) {
	t.Parallel()
	a := newAdmission(1, 1)
	for i := range maxRemembered + 100 {
		if _, err := a.enter(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.callers.at); n != maxRemembered || a.callers.order.Len() != n {
		t.Errorf("got %d identities, %d in order", n, a.callers.order.Len())
	}
	if _, err := a.enter(fmt.Sprint(maxRemembered + 99)); err == nil {
		t.Error("the most recent identity was evicted")
	}
}

func TestFailuresLimitNetwork(t *testing.T) {
	t.Parallel()
	f := newFailures()
	now := time.Unix(1000, 0)
	f.clock = func() time.Time { return now }
	bad, neighbour, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("192.0.2.1")
	for range failuresBurst {
		if err := f.check(bad); err != nil {
			t.Fatal(err)
		}
		f.count(bad)
	}
	if err := f.check(bad); !errors.Is(err, broker.ErrSlowDown) {
		t.Errorf("after %d failures: %v", failuresBurst, err)
	}
	if err := f.check(neighbour); !errors.Is(err, broker.ErrSlowDown) {
		t.Errorf("another address of the same /64: %v", err)
	}
	if err := f.check(other); err != nil {
		t.Errorf("another address: %v", err)
	}
	now = now.Add(time.Second)
	if err := f.check(bad); err != nil {
		t.Errorf("a second later: %v", err)
	}
	if err := f.check(netip.Addr{}); err != nil {
		t.Errorf("an unknown address: %v", err)
	}
}
