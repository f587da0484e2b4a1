package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// A status list states for each of its tokens whether it is still valid, one bit a token
// (draft-ietf-oauth-status-list). Resource servers fetch a list now and then, and the broker
// does not learn which of its tokens they saw.
//
// A token has its place in a list when it is signed, and the lease's row has the place: that
// costs no write. Only opening a list is one, about once an hour. Every process fills lists of
// its own, and a process that starts again opens a new one, so no place is used twice.
//
// A list is not stored. It follows from the leases that have ended before their time, from
// the blocks in force and from the rules, as an introspection does.

// A StatusListID names a status list. It begins with the time at which the list was opened.
type StatusListID ID

func (StatusListID) isKey() {}

func (id StatusListID) String() string { return encodeID("", id) }

// ParseStatusListID parses the text of an ID. It returns ErrNotFound for any other text.
func ParseStatusListID(s string) (StatusListID, error) {
	id, err := parseID("", s)
	return StatusListID(id), err
}

// A StatusList is a list that was opened.
type StatusList struct {
	ID      StatusListID
	Opened  time.Time // the list has tokens of leases with IDs from then on
	Closes  time.Time // and before then
	Expires time.Time // when all of its tokens have expired
}

// Key implements Row.
func (l *StatusList) Key() Key { return l.ID }

// Leases returns the bounds of the IDs of the list's leases: from the first up to, but not
// including, the second.
func (l *StatusList) Leases() (from, before LeaseID) {
	return leaseIDAt(l.Opened), leaseIDAt(l.Closes)
}

// A StatusPlace is the place of a token in a status list; zero: it has none.
type StatusPlace struct {
	List  StatusListID
	Index uint32
}

// IsZero reports whether the token has no place in a list.
func (p StatusPlace) IsZero() bool { return p.List == StatusListID{} }

const (
	// StatusListSize is the number of places in a list. An unused place can't be told from
	// that of a valid token, so a list does not reveal how many tokens there are.
	StatusListSize = 1 << 20

	statusListOpen = time.Hour      // how long a list takes tokens
	maxStatusLists = 10_000         // that the aggregation names
	longestListed  = 24 * time.Hour // the longest lifetime of a token
)

// A StatusReader knows the status lists and their leases. Each answer includes every Update
// that returned before the call. It is safe for concurrent use.
type StatusReader interface {
	// StatusLists returns lists that have not expired at now, the newest first.
	StatusLists(ctx context.Context, now time.Time, limit int) ([]*StatusList, error)

	// EndedPlaces returns one bit for each place of a list, which is set if the lease has
	// ended before its time. The version changes with the bits. The caller must not
	// change them.
	EndedPlaces(ctx context.Context, list *StatusList) (bits []byte, version uint64, err error)

	// ListedLeases calls f for leases of a list that have not ended. It may leave out those
	// that the query does not need.
	ListedLeases(ctx context.Context, list *StatusList, q ListedQuery, f func(*Lease)) error
}

// A ListedQuery needs the leases of entitlements that the catalogue does not have, and those
// whose rows mention one of the names.
type ListedQuery struct {
	Catalogue Catalogue
	Names     []string
	Now       time.Time
}

// StatusLists assigns tokens to lists, and states which are invalid. It is safe for
// concurrent use.
type StatusLists struct {
	b      *Broker
	reader StatusReader // nil: tokens have no places

	mu      sync.Mutex
	filling *filling

	refusedMu sync.Mutex
	refused   map[StatusListID]*refusedPlaces
}

// A filling is the list that takes tokens.
type filling struct {
	list StatusList
	next uint32
	key  [statusRounds]uint64 // of the order in which places are taken
}

// place assigns a lease to a place. It opens a list if none can take the lease.
func (s *StatusLists) place(ctx context.Context, l *Lease) error {
	if s.reader == nil {
		return fmt.Errorf("%w: the store has no status lists", ErrUnavailable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filling == nil || !s.filling.takes(l) {
		opened, err := s.open(ctx, l)
		if err != nil {
			return err
		}
		s.filling = opened
	}
	l.Listed = StatusPlace{s.filling.list.ID, s.filling.take()}
	return nil
}

func (f *filling) takes(l *Lease) bool {
	from, before := f.list.Leases()
	return f.next < StatusListSize && compareLeaseIDs(l.ID, from) >= 0 && compareLeaseIDs(l.ID, before) < 0 && !l.Expires.After(f.list.Expires)
}

func compareLeaseIDs(a, b LeaseID) int { return slices.Compare(a[:], b[:]) }

// open opens a list for the lease and for those after it.
func (s *StatusLists) open(ctx context.Context, l *Lease) (*filling, error) {
	opened := l.ID.Time()
	longest := min(longestListed, max(l.Expires.Sub(opened), s.b.rules.Load().Catalogue.longestListed()))
	f := &filling{list: StatusList{
		ID: StatusListID(newID(opened)), Opened: opened, Closes: opened.Add(statusListOpen), Expires: opened.Add(statusListOpen + longest),
	}}
	for i := range f.key {
		f.key[i] = rand.Uint64()
	}
	list := f.list
	if err := s.b.cfg.Store.Update(ctx, nil, func(tx Tx) error { tx.Put(&list); return nil }); err != nil {
		return nil, fmt.Errorf("opening a status list: %w", Unavailable(err))
	}
	return f, nil
}

// ListsStatuses reports whether tokens of an entitlement have places in status lists.
func (c Catalogue) ListsStatuses() bool { return c.longestListed() > 0 }

// longestListed returns the longest lifetime of the tokens that have places in lists.
func (c Catalogue) longestListed() time.Duration {
	longest := time.Duration(0)
	for _, e := range c {
		if e.StatusList {
			longest = max(longest, e.MaxTTL)
		}
	}
	return longest
}

const (
	statusRounds = 4
	statusHalf   = 10 // bits; StatusListSize has twice as many
	statusMask   = 1<<statusHalf - 1
)

// take returns the next place. Places are taken in an order that looks random, so that a
// token's index does not reveal which tokens were issued before it (section 12.5 of the
// draft): the next number goes through a Feistel network, which permutes the indexes.
func (f *filling) take() uint32 {
	left, right := f.next>>statusHalf, f.next&statusMask
	for _, key := range f.key {
		left, right = right, left^mix(right, key)
	}
	f.next++
	return left<<statusHalf | right
}

// mix is the round function: the finalizer of SplitMix64.
func mix(half uint32, key uint64) uint32 {
	x := uint64(half) ^ key
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return uint32(x>>31) & statusMask
}

// Lists returns the lists whose tokens may be valid at now.
func (s *StatusLists) Lists(ctx context.Context, now time.Time) ([]*StatusList, error) {
	if s.reader == nil {
		return nil, nil
	}
	lists, err := s.reader.StatusLists(ctx, now, maxStatusLists)
	return lists, Unavailable(err)
}

// A StatusMarks has one bit for each place of a list, set if its token is invalid. The least
// significant bit of a byte is the first one (section 4.1 of the draft).
type StatusMarks struct {
	Bits    []byte
	Version StatusVersion // changes with the bits
}

// A StatusVersion is comparable.
type StatusVersion struct {
	ended   uint64
	others  *refusedPlaces
	severed *severedPlaces // another one for each call while there are any
}

// Marks returns the state of a list at now, and ErrNotFound for a list that was never opened
// or whose tokens have all expired.
func (s *StatusLists) Marks(ctx context.Context, id StatusListID, now time.Time) (*StatusMarks, error) {
	if s.reader == nil {
		return nil, ErrNotFound
	}
	list, err := s.list(ctx, id)
	if err != nil {
		return nil, err
	}
	if !now.Before(list.Expires) {
		return nil, ErrNotFound
	}
	if !list.Opened.After(s.b.cfg.Restored) { // which tokens it has may be lost, and all of them have ended
		return &StatusMarks{Bits: bytes.Repeat([]byte{0xff}, StatusListSize/8)}, nil
	}
	others, err := s.refusedPlaces(ctx, list, now)
	if err != nil {
		return nil, err
	}
	// Before the ended ones: what leaves these places comes to those.
	severed, err := s.severed(ctx, list, now)
	if err != nil {
		return nil, err
	}
	bits, version, err := s.reader.EndedPlaces(ctx, list)
	if err != nil {
		return nil, Unavailable(err)
	}
	more := others.places
	if severed != nil {
		more = slices.Concat(more, severed.places)
	}
	if len(more) > 0 {
		bits = slices.Clone(bits)
		for _, i := range more {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return &StatusMarks{bits, StatusVersion{version, others, severed}}, nil
}

func (s *StatusLists) list(ctx context.Context, id StatusListID) (list *StatusList, err error) {
	s.mu.Lock()
	if s.filling != nil && s.filling.list.ID == id {
		known := s.filling.list
		list = &known
	}
	s.mu.Unlock()
	if list != nil {
		return list, nil
	}
	err = s.b.cfg.Store.View(ctx, func(tx Tx) error {
		list, err = Get[*StatusList](tx, id)
		return err
	})
	if isNotFound(err) {
		return nil, ErrNotFound
	}
	return list, Unavailable(err)
}

// refusedPlaces are the places of tokens whose leases have not ended, but which an
// introspection reports as inactive: their holder is blocked, or their entitlement has left
// the catalogue. They change only with the blocks and the rules, because nothing is issued
// that they refuse.
type refusedPlaces struct {
	rules  *Rules
	blocks map[BlockKey]time.Time // in force, and since when
	places []uint32
}

// refusedPlaces returns the places, which must not be changed. It reads the leases of the list
// only after a change of blocks or rules.
func (s *StatusLists) refusedPlaces(ctx context.Context, list *StatusList, now time.Time) (*refusedPlaces, error) {
	inForce, err := s.b.cfg.Blocks(ctx)
	if err != nil {
		return nil, Unavailable(err)
	}
	fresh := &refusedPlaces{rules: s.b.rules.Load(), blocks: make(map[BlockKey]time.Time, len(inForce))}
	for _, block := range inForce {
		fresh.blocks[block.Selector] = block.Since
	}
	s.refusedMu.Lock()
	defer s.refusedMu.Unlock()
	if known := s.refused[list.ID]; known != nil && known.rules == fresh.rules && maps.EqualFunc(known.blocks, fresh.blocks, time.Time.Equal) {
		return known, nil
	}
	query := ListedQuery{Catalogue: fresh.rules.Catalogue, Names: fresh.names(), Now: now}
	err = s.reader.ListedLeases(ctx, list, query, func(l *Lease) {
		if e := fresh.rules.Catalogue[l.Entitlement]; e == nil || !s.b.inForce(ctx, l, e, now) {
			fresh.places = append(fresh.places, l.Listed.Index)
		}
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	if s.refused == nil || len(s.refused) >= maxRefusedLists {
		s.refused = map[StatusListID]*refusedPlaces{}
	}
	s.refused[list.ID] = fresh
	return fresh, nil
}

// names returns the names that the row of a blocked lease mentions: those of the blocks, and
// the other accounts of a blocked person.
func (r *refusedPlaces) names() (list []string) {
	for block := range r.blocks {
		list = append(list, block.Name)
		list = append(list, r.rules.People.Accounts(block.Name)...)
	}
	return list
}

// maxRefusedLists bounds the lists whose refused places are kept.
const maxRefusedLists = 1024

// Time returns when the lease was opened, to the millisecond. It may be slightly later than
// that if many IDs were made at once (see newID).
func (id LeaseID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}
