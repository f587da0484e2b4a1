package verify

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Bounds of status lists.
const (
	maxList      = 1 << 20 // bytes, decompressed
	maxLists     = 256     // in memory
	leastTTL     = time.Second
	usualTTL     = time.Minute // of a list without ttl
	mostTTL      = time.Hour
	mostLasting  = 24 * time.Hour // of a list without exp
	retryListFor = time.Second    // between fetches that fail
)

// lists are the status lists that were read (draft-ietf-oauth-status-list-20). A list is
// fetched when a token needs it, and again after its ttl. If the issuer does not answer then,
// the old list counts until its exp, and no token of the list is accepted afterwards.
type lists struct {
	v *Verifier

	mu    sync.Mutex
	byURI map[string]*list
}

// A list is one status list.
type list struct {
	uri string
	r   refresher

	mu    sync.Mutex
	used  time.Time
	state *listState // nil: it was never fetched
	err   error      // of the last fetch
}

// A listState is a list as it was fetched. It is never changed.
type listState struct {
	bits  int
	bytes []byte
	fresh time.Time // until then
	ends  time.Time // exp
	ttl   time.Duration
	tag   string // ETag
}

// check checks the status of a token.
func (l *lists) check(ctx context.Context, at *statusRef, now time.Time) error {
	if !l.v.hosts(at.uri) {
		return invalid("its status list is not one of the issuer's")
	}
	one := l.of(at.uri, now)
	state := one.fresh(now)
	if state == nil {
		done := one.r.start(now, retryListFor, func(ctx context.Context) { one.fetch(ctx, l.v) })
		if err := wait(ctx, done); err != nil {
			return unavailable("waiting for the status list", err)
		}
		var err error
		if state, err = one.usable(l.v.cfg.Now()); err != nil {
			return unavailable("fetching the status list", err)
		}
	}
	status, ok := state.at(at.index)
	switch {
	case !ok:
		return invalid("its place is beyond the end of its status list")
	case status != 0:
		return invalid("it is revoked")
	}
	return nil
}

// hosts reports whether a URI is on the issuer's own host: a token must not make the service
// call others.
func (v *Verifier) hosts(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Scheme == v.issuer.Scheme && strings.EqualFold(u.Host, v.issuer.Host) && u.User == nil && u.Fragment == ""
}

// of returns a list. If there are too many, the one that was not used for the longest time
// is forgotten.
func (l *lists) of(uri string, now time.Time) *list {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.byURI[uri]
	if one == nil {
		if l.byURI == nil {
			l.byURI = map[string]*list{}
		}
		if len(l.byURI) >= maxLists {
			l.forgetOne()
		}
		one = &list{uri: uri}
		l.byURI[uri] = one
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	one.used = now
	return one
}

func (l *lists) forgetOne() {
	oldest, at := "", time.Time{}
	for uri, one := range l.byURI {
		one.mu.Lock()
		if oldest == "" || one.used.Before(at) {
			oldest, at = uri, one.used
		}
		one.mu.Unlock()
	}
	delete(l.byURI, oldest)
}

// fresh returns the list if it needs no fetch.
func (l *list) fresh(now time.Time) *listState {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != nil && now.Before(l.state.fresh) && now.Before(l.state.ends) {
		return l.state
	}
	return nil
}

// usable returns the list until its exp.
func (l *list) usable(now time.Time) (*listState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != nil && now.Before(l.state.ends) {
		return l.state, nil
	}
	if l.err != nil {
		return nil, l.err
	}
	return nil, errors.New("it has expired")
}

func (l *list) fetch(ctx context.Context, v *Verifier) {
	l.mu.Lock()
	old := l.state
	l.mu.Unlock()
	state, err := l.read(ctx, v, old)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err = err; err == nil {
		l.state = state
	}
}

func (l *list) read(ctx context.Context, v *Verifier, old *listState) (*listState, error) {
	header := http.Header{"Accept": {"application/statuslist+jwt"}}
	if old != nil && old.tag != "" {
		header.Set("If-None-Match", old.tag)
	}
	resp, err := v.get(ctx, l.uri, header, maxListToken)
	if err != nil {
		return nil, err
	}
	now := v.cfg.Now()
	if resp.status == http.StatusNotModified {
		if old == nil {
			return nil, errors.New("the answer has no list")
		}
		same := *old
		same.fresh = now.Add(same.ttl)
		return &same, nil
	}
	if !resp.hasType("application/statuslist+jwt") {
		return nil, errors.New("the answer is not a status list")
	}
	state, err := v.parseList(ctx, l.uri, string(resp.body), now)
	if err == nil {
		state.tag = resp.header.Get("ETag")
	}
	return state, err
}

var errList = errors.New("the status list is not valid")

// parseList verifies a status list token (section 8.3 of the draft).
func (v *Verifier) parseList(ctx context.Context, uri, text string, now time.Time) (*listState, error) {
	j, err := parseJWS(strings.TrimSpace(text), maxListToken, issuerAlgorithms)
	if err != nil || j.typ != "statuslist+jwt" {
		return nil, errList
	}
	key, err := v.keys.find(ctx, j.header.textOf("kid"))
	if err != nil {
		return nil, err
	}
	if err := j.verify(key); err != nil {
		return nil, errList
	}
	claims, err := parseObject(j.claims)
	if err != nil {
		return nil, errList
	}
	if _, has := claims.get("iss"); has && claims.textOf("iss") != v.cfg.Issuer {
		return nil, errList
	}
	if claims.textOf("sub") != uri {
		return nil, errors.New("the status list is another one")
	}
	state := &listState{}
	if err := state.readTimes(&claims, now, v.leeway); err != nil {
		return nil, err
	}
	return state, state.readBits(&claims)
}

func (s *listState) readTimes(claims *value, now time.Time, leeway time.Duration) error {
	iat, ok := claims.number("iat")
	if !ok || time.Unix(iat, 0).After(now.Add(leeway)) {
		return errList
	}
	s.ends = time.Unix(iat, 0).Add(mostLasting)
	if _, has := claims.get("exp"); has {
		exp, ok := claims.number("exp")
		if !ok {
			return errList
		}
		s.ends = time.Unix(exp, 0)
	}
	if !now.Before(s.ends) {
		return errors.New("the status list has expired")
	}
	s.ttl = usualTTL
	if _, has := claims.get("ttl"); has {
		ttl, ok := claims.number("ttl")
		if !ok || ttl <= 0 {
			return errList
		}
		s.ttl = min(max(time.Duration(min(ttl, int64(mostTTL/time.Second)))*time.Second, leastTTL), mostTTL)
	}
	s.fresh = now.Add(s.ttl)
	return nil
}

func (s *listState) readBits(claims *value) error {
	object, ok := claims.get("status_list")
	bits, isNumber := object.number("bits")
	if !ok || !isNumber || bits != 1 && bits != 2 && bits != 4 && bits != 8 {
		return errList
	}
	packed, err := base64url.DecodeString(object.textOf("lst"))
	if err != nil || len(packed) == 0 {
		return errList
	}
	s.bits = int(bits)
	s.bytes, err = inflate(packed)
	return err
}

// inflate decompresses a list. A small text could become a very large one.
func inflate(packed []byte) ([]byte, error) {
	r := bytes.NewReader(packed)
	z, err := zlib.NewReader(r)
	if err != nil {
		return nil, errList
	}
	out, err := io.ReadAll(io.LimitReader(z, maxList+1))
	if err != nil || r.Len() > 0 && len(out) <= maxList {
		return nil, errList
	}
	if len(out) > maxList {
		return nil, errors.New("the status list is too large")
	}
	return out, nil
}

// at returns the status at an index (section 4.1 of the draft).
func (s *listState) at(index int64) (status byte, ok bool) {
	perByte := int64(8 / s.bits)
	if index < 0 || index/perByte >= int64(len(s.bytes)) {
		return 0, false
	}
	shift := uint(index%perByte) * uint(s.bits)
	return s.bytes[index/perByte] >> shift & (1<<s.bits - 1), true
}
