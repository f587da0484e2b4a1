package directory

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// MaxTokenAge bounds how long a token of a client is valid.
const MaxTokenAge = 366 * 24 * time.Hour

// AddToken stores a token that the broker is about to sign. It counts only while its row
// does, so that it can be revoked.
func (d *Directory) AddToken(ctx context.Context, caller broker.Caller, sourceName string, lasts time.Duration) (*broker.SCIMToken, error) {
	s, err := d.source(sourceName)
	if err != nil {
		return nil, err
	}
	if lasts < time.Minute || lasts > MaxTokenAge {
		return nil, &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: "a token is valid for 1m to " + broker.FormatDuration(MaxTokenAge)}
	}
	t := &broker.SCIMToken{ID: broker.NewSCIMTokenID(caller.At), Source: s.Name, By: caller.Actor.ID, Created: caller.At, Expires: caller.At.Add(lasts).Truncate(time.Second)}
	record := audit.Record{Kind: audit.DirectoryToken, Caller: caller.Actor.Party(), Directory: &audit.DirectoryFacts{Source: FactSource(s.Name), ID: t.ID.String(), Op: "created", Expires: t.Expires}}
	if _, err := broker.Write(ctx, d.cfg.Store, nil, record, func(tx broker.Tx) error { tx.Put(t); return nil }); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tokens[t.ID] = t
	return t, nil
}

// RevokeToken ends a token. Revoking it again changes nothing.
func (d *Directory) RevokeToken(ctx context.Context, caller broker.Caller, id broker.SCIMTokenID) (*broker.SCIMToken, error) {
	_ = d.Refresh(ctx, caller.At) // ending never depends on the store
	var t *broker.SCIMToken
	d.mu.RLock()
	if known := d.tokens[id]; known != nil {
		found := *known
		t = &found
	}
	d.mu.RUnlock()
	if t == nil {
		return nil, &broker.Refusal{Err: broker.ErrNotFound, Detail: "there is no token with this id: list them with \"broker scim tokens\""}
	}
	if !t.Revoked.IsZero() {
		return t, nil
	}
	// It ends before its end is recorded: ending never depends on the log.
	t.Revoked = caller.At
	d.mu.Lock()
	d.tokens[id] = t
	d.mu.Unlock()
	record := audit.Record{Kind: audit.DirectoryToken, Caller: caller.Actor.Party(), Directory: &audit.DirectoryFacts{Source: FactSource(t.Source), ID: id.String(), Op: "revoked"}}
	_, err := broker.Write(ctx, d.cfg.Store, []broker.Key{id}, record, func(tx broker.Tx) error {
		if _, err := tx.Get(id); errors.Is(err, broker.ErrNotFound) {
			return broker.ErrUnchanged // it expired and was swept
		}
		tx.Put(t)
		return nil
	})
	if errors.Is(err, broker.ErrUnchanged) {
		err = nil
	}
	return t, err
}

// Token returns a token that is in force at now.
func (d *Directory) Token(id broker.SCIMTokenID, now time.Time) (*broker.SCIMToken, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	t := d.tokens[id]
	if t == nil || !t.Revoked.IsZero() || !now.Before(t.Expires) {
		return nil, false
	}
	return t, true
}

// Tokens returns the tokens that have not expired, the newest first.
func (d *Directory) Tokens(now time.Time) (list []*broker.SCIMToken) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, t := range d.tokens {
		if now.Before(t.Expires) {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b *broker.SCIMToken) int { return bytes.Compare(b.ID[:], a.ID[:]) })
	return list
}
