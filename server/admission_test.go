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
	a := newAdmission(50, 20)
	now := time.Unix(1000, 0)
	enter := func(id string) error {
		leave, err := a.enter(id, now)
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
		t.Errorf("a fiftieth of a second later: %v", err)
	}
}

func TestAdmissionAtOnce(t *testing.T) {
	a := newAdmission(1000, 2)
	now := time.Unix(1000, 0)
	first, err1 := a.enter("x", now)
	_, err2 := a.enter("x", now)
	if _, err := a.enter("x", now); err1 != nil || err2 != nil || !errors.Is(err, broker.ErrSlowDown) {
		t.Fatalf("%v, %v, then %v", err1, err2, err)
	}
	first()
	if _, err := a.enter("x", now); err != nil {
		t.Errorf("after one left: %v", err)
	}
}

func TestAdmissionRemembersSoMany(t *testing.T) {
	a := newAdmission(1, 1)
	now := time.Unix(1000, 0)
	for i := range maxRemembered + 100 {
		if _, err := a.enter(fmt.Sprint(i), now); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.callers.at); n != maxRemembered || a.callers.order.Len() != n {
		t.Errorf("%d identities are remembered, %d in order", n, a.callers.order.Len())
	}
	if _, err := a.enter(fmt.Sprint(maxRemembered+99), now); err == nil {
		t.Error("the identity that called last is forgotten")
	}
}

func TestFailuresOfAnAddress(t *testing.T) {
	f := newFailures()
	now := time.Unix(1000, 0)
	bad, neighbour, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("192.0.2.1")
	for range failuresBurst {
		if err := f.check(bad, now); err != nil {
			t.Fatal(err)
		}
		f.count(bad, now)
	}
	if err := f.check(bad, now); !errors.Is(err, broker.ErrSlowDown) {
		t.Errorf("after %d failures: %v", failuresBurst, err)
	}
	if err := f.check(neighbour, now); !errors.Is(err, broker.ErrSlowDown) {
		t.Errorf("another address of the same /64: %v", err)
	}
	if err := f.check(other, now); err != nil {
		t.Errorf("another address: %v", err)
	}
	if err := f.check(bad, now.Add(time.Second)); err != nil {
		t.Errorf("a second later: %v", err)
	}
	if err := f.check(netip.Addr{}, now); err != nil {
		t.Errorf("an unknown address: %v", err)
	}
}
