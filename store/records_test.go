package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// listed returns the records of a request or lease row.
func listed(t *testing.T, s *Store, key broker.Key) []broker.RecordID {
	t.Helper()
	r, err := get(t, s, key)
	if err != nil {
		t.Fatal(err)
	}
	switch r := r.(type) {
	case *broker.Request:
		return r.Records
	case *broker.Lease:
		return r.Records
	}
	t.Fatalf("%T lists no records", r)
	return nil
}

func first(index ...int64) (ids []broker.RecordID) {
	for _, i := range index {
		ids = append(ids, broker.NewRecordID(1, i))
	}
	return ids
}

func TestRowsListTheirRecords(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	i.lease.Records = first(99) // the caller's list is not stored
	if err := i.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	works(t, s) // a record of another row
	if err := revoke(t, s, i.lease.ID); err != nil {
		t.Fatal(err)
	}
	if got, want := listed(t, s, i.request.ID), first(1); !slices.Equal(got, want) {
		t.Errorf("the request lists %v, want %v", got, want)
	}
	if got, want := listed(t, s, i.lease.ID), first(1, 3); !slices.Equal(got, want) {
		t.Errorf("the lease lists %v, want %v", got, want)
	}
	items, err := s.Records(t.Context(), listed(t, s, i.lease.ID))
	if err != nil || len(items) != 2 || items[0].Index != 1 || items[1].Index != 3 || !strings.Contains(string(items[1].Leaf), i.lease.ID.String()) {
		t.Errorf("read %+v, %v", items, err)
	}
	// Written again without a record, the row keeps its list.
	if err := touch(t, s, i.lease.ID, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := listed(t, s, i.lease.ID), first(1, 3); !slices.Equal(got, want) {
		t.Errorf("written again, the lease lists %v, want %v", got, want)
	}
	if _, err := s.Records(t.Context(), first(1, 77)); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("reading a record that is not there: %v", err)
	}
}

// Only requests and leases list records.
func TestOtherRowsListNoRecords(t *testing.T) {
	s := newStore(t)
	entry, err := audit.Record{Kind: audit.BlockPlaced, Block: &audit.BlockFacts{Selector: "holder a"}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	key := broker.BlockKey{Kind: "holder", Name: "a"}
	err = s.Update(t.Context(), nil, func(tx broker.Tx) error {
		tx.Put(&broker.Block{Selector: key, Since: testNow})
		tx.Append(entry)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if list := recordList(s.w.blocks[key]); len(list) != 0 {
		t.Errorf("a block lists records: %x", list)
	}
}

// touch puts a lease as it is, twice, with a record each of the kinds.
func touch(t *testing.T, s *Store, id broker.LeaseID, kinds []audit.Kind) error {
	var entries []*audit.Entry
	for _, kind := range kinds {
		entry, err := audit.Record{Kind: kind, Lease: &audit.LeaseFacts{ID: id.String()}, End: &audit.EndFacts{How: "returned"}}.Entry()
		if err != nil {
			return err
		}
		entries = append(entries, entry)
	}
	return s.Update(t.Context(), []broker.Key{id}, func(tx broker.Tx) error {
		for range 2 {
			r, err := tx.Get(id)
			if err != nil {
				return err
			}
			tx.Put(r)
		}
		for _, e := range entries {
			tx.Append(e)
		}
		return nil
	})
}

// Members of one group read the lists that the members before them will have,
// also when a member fails and the others run again.
func TestMembersKeepListsOfEarlierMembers(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	refuseBadHolders(t, s)
	for _, failing := range []bool{false, true} {
		before := listed(t, s, i.lease.ID)
		release := hold(t, s)
		var wg sync.WaitGroup
		const members = 6
		for n := range members {
			wg.Go(func() {
				var err error
				if bad := newIssuance(t, n); failing && n%2 == 0 {
					bad.lease.Holder = "bad"
					if err = bad.store(t.Context(), s); err == nil {
						err = errors.New("a member that breaks a constraint did not fail")
					} else {
						err = nil
					}
				} else {
					err = touch(t, s, i.lease.ID, []audit.Kind{audit.LeaseRevoking, audit.LeaseRevoked})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		waitFor(s, members)
		release()
		wg.Wait()
		want := slices.Clone(before)
		for index := before[len(before)-1].Index() + 1; index < s.Head().Size; index++ {
			want = append(want, broker.NewRecordID(1, index))
		}
		if got := listed(t, s, i.lease.ID); !slices.Equal(got, want) || len(got) == len(before) {
			t.Errorf("failing members %t: the lease lists %v, want %v", failing, got, want)
		}
		for n, item := range must(s.Records(t.Context(), want))(t) {
			if !strings.Contains(string(item.Leaf), i.lease.ID.String()) {
				t.Errorf("failing members %t: record %d of the list is about another lease: %s", failing, n, item.Leaf)
			}
		}
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A row that was first put without a record, as earlier versions wrote all of
// them, never gets a list: it would look complete.
func TestRowsWithoutAListGetNone(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	put(t, s, &i.request, &i.lease)
	if err := revoke(t, s, i.lease.ID); err != nil {
		t.Fatal(err)
	}
	if got := append(listed(t, s, i.lease.ID), listed(t, s, i.request.ID)...); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
}

// A list continues over a new epoch, whose indexes begin at 0 again. The current log
// has only its own records.
func TestListsNameTheLogOfARecord(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	const second = "broker.test/log/11111111"
	_, public, err := audit.NewLogKey(second)
	if err != nil {
		t.Fatal(err)
	}
	if err := newEpoch(t.Context(), s, second, public); err != nil {
		t.Fatal(err)
	}
	if err := revoke(t, s, i.lease.ID); err != nil {
		t.Fatal(err)
	}
	got := listed(t, s, i.lease.ID)
	if fmt.Sprint(got[0].Epoch(), got[0].Index(), got[1].Epoch(), got[1].Index(), len(got)) != "1 1 2 1 2" {
		t.Errorf("listed %v", got)
	}
	items, err := s.Records(t.Context(), got)
	if err != nil || len(items) != 1 || items[0].Index != 1 || !strings.Contains(string(items[0].Leaf), string(audit.LeaseRevoked)) {
		t.Errorf("of the current log: %+v, %v", items, err)
	}
}
