package token

import (
	"bytes"
	"compress/zlib"
	"context"
	"fmt"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// statusList is the typ of a status list (draft-ietf-oauth-status-list-20, section 5.1).
const statusList = "statuslist+jwt"

// StatusListsPath is the path of the aggregation of an issuer's status lists. Each list is
// below it.
const StatusListsPath = "/oauth2/status"

// StatusListURI returns the URI of a list of the issuer.
func StatusListURI(issuer string, id broker.StatusListID) string {
	return issuer + StatusListsPath + "/" + id.String()
}

// StatusLists signs status lists. It is safe for concurrent use.
type StatusLists struct {
	cfg StatusListsConfig

	mu   sync.Mutex
	made map[broker.StatusListID]*madeList
}

// StatusListsConfig configures StatusLists.
type StatusListsConfig struct {
	Issuer string // the broker's external URL
	Keys   *Keys
	Lists  *broker.StatusLists
	TTL    time.Duration // how long a consumer may keep a list
}

// A madeList is the newest signed form of a list.
type madeList struct {
	making  sync.Mutex // held while the list is made
	version broker.StatusVersion
	at      time.Time
	text    string

	mu   sync.Mutex
	next *making // which has not begun; nil: none waits
}

// A making makes a list for all calls that came before it began. So a list is made as often as
// one goroutine can, however many calls there are, and none gets an older state than it may.
type making struct {
	done chan struct{}
	text string
	err  error
}

// makeDeadline bounds the time to make a list.
const makeDeadline = 10 * time.Second

// maxMade bounds the signed lists in memory.
const maxMade = 1024

// lifetimes is how many TTLs a list is valid for: consumers that can't get a fresh one may use
// it for that long.
const lifetimes = 4

// NewStatusLists returns StatusLists.
func NewStatusLists(cfg StatusListsConfig) *StatusLists {
	return &StatusLists{cfg: cfg, made: map[broker.StatusListID]*madeList{}}
}

// Token returns a status list token (section 5.1), and broker.ErrNotFound if there is no such
// list. It states all ends before the call.
func (s *StatusLists) Token(ctx context.Context, list string, now time.Time) (string, error) {
	id, err := broker.ParseStatusListID(list)
	if err != nil {
		return "", err
	}
	made := s.madeOf(id)
	made.mu.Lock()
	call, leads := made.next, made.next == nil
	if leads {
		call = &making{done: make(chan struct{})}
		made.next = call
	}
	made.mu.Unlock()
	if leads {
		defer close(call.done)
		call.text, call.err = s.make(context.WithoutCancel(ctx), id, made, now) // for others, too
		return call.text, call.err
	}
	select {
	case <-call.done:
		return call.text, call.err
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for a status list: %w: %w", broker.ErrUnavailable, context.Cause(ctx))
	}
}

// make makes a list when the previous making has ended.
func (s *StatusLists) make(ctx context.Context, id broker.StatusListID, made *madeList, now time.Time) (string, error) {
	made.making.Lock()
	defer made.making.Unlock()
	made.mu.Lock()
	made.next = nil // it begins
	made.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, makeDeadline)
	defer cancel()
	marks, err := s.cfg.Lists.Marks(ctx, id, now)
	if err != nil {
		return "", err
	}
	if made.text != "" && made.version == marks.Version && now.Sub(made.at) < s.cfg.TTL {
		return made.text, nil
	}
	text, err := s.sign(id, marks.Bits, now)
	if err != nil {
		return "", err
	}
	made.version, made.at, made.text = marks.Version, now, text
	return text, nil
}

func (s *StatusLists) madeOf(id broker.StatusListID) *madeList {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.made[id]; known != nil {
		return known
	}
	if len(s.made) >= maxMade {
		clear(s.made)
	}
	fresh := &madeList{}
	s.made[id] = fresh
	return fresh
}

func (s *StatusLists) sign(id broker.StatusListID, bits []byte, now time.Time) (string, error) {
	var b bytes.Buffer
	z, err := zlib.NewWriterLevel(&b, zlib.BestCompression)
	if err != nil {
		return "", fmt.Errorf("compressing a status list: %w", err)
	}
	if _, err := z.Write(bits); err != nil {
		return "", fmt.Errorf("compressing a status list: %w", err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("compressing a status list: %w", err)
	}
	return s.cfg.Keys.SignTyped(statusList, map[string]any{
		"sub": StatusListURI(s.cfg.Issuer, id),
		"iss": s.cfg.Issuer,
		"iat": now.Unix(),
		"exp": now.Add(lifetimes * s.cfg.TTL).Unix(),
		"ttl": int64(s.cfg.TTL / time.Second),
		"status_list": map[string]any{
			"bits": 1, "lst": base64url(b.Bytes()), "aggregation_uri": s.cfg.Issuer + StatusListsPath,
		},
	}, now)
}

// URIs returns the URIs of all lists whose tokens may be valid at now.
func (s *StatusLists) URIs(ctx context.Context, now time.Time) ([]string, error) {
	lists, err := s.cfg.Lists.Lists(ctx, now)
	if err != nil {
		return nil, err
	}
	uris := make([]string, len(lists))
	for i, l := range lists {
		uris[i] = StatusListURI(s.cfg.Issuer, l.ID)
	}
	return uris, nil
}
