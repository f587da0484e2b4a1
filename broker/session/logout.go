package session

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// logoutLeeway is how far the provider's clock may be behind.
const logoutLeeway = time.Minute

func subKey(provider, sub string) broker.LogoutKey {
	return broker.LogoutKey{Provider: provider, Claim: "sub", Value: sub}
}

func sidKey(provider, sid string) broker.LogoutKey {
	return broker.LogoutKey{Provider: provider, Claim: "sid", Value: sid}
}

// noSIDKey names the sessions of a person without a provider session id.
func noSIDKey(provider, sub string) broker.LogoutKey {
	return broker.LogoutKey{Provider: provider, Claim: "no sid", Value: sub}
}

// EndSessions ends the sessions that a provider logged out: those that were opened
// before the token was issued. A repeated token changes nothing. Otherwise, anyone
// who saw one could end sessions that its person opens later (OpenID Connect
// Back-Channel Logout 1.0, section 2.6).
func (m *Manager) EndSessions(ctx context.Context, token broker.LogoutToken, now time.Time) error {
	ended, err := endedBy(token, now)
	if err != nil {
		return err
	}
	record := audit.Record{Kind: audit.SessionClosed, End: &audit.EndFacts{How: "provider"}}
	if token.Sub != "" {
		record.Subject = &audit.Party{ID: token.Provider + "/" + token.Sub, Kind: string(broker.KindPerson)}
	}
	at := token.Issued.Add(logoutLeeway)
	if now.Before(at) {
		at = now
	}
	seen := usedKey(token)
	reads := []broker.Key{seen}
	for _, key := range ended {
		reads = append(reads, key)
	}
	return ignoreUnchanged(m.write(ctx, reads, record, func(tx broker.Tx) error {
		switch _, err := broker.Get[*broker.Logout](tx, seen); {
		case err == nil:
			return broker.ErrUnchanged
		case !isNotFound(err):
			return err
		}
		tx.Put(&broker.Logout{LogoutKey: seen, At: now, Expires: now.Add(2 * broker.LogoutFor)})
		for _, key := range ended {
			if err := logOut(tx, key, at, at.Add(m.cfg.Lasts)); err != nil {
				return err
			}
		}
		return nil
	}))
}

// endedBy returns the keys of the sessions that a logout token ends.
func endedBy(token broker.LogoutToken, now time.Time) ([]broker.LogoutKey, error) {
	switch {
	case token.ID == "" || now.Sub(token.Issued) > broker.LogoutFor:
		return nil, refuse(broker.ErrInvalidRequest, "the logout token has no id or is too old")
	case token.SID != "" && token.Sub != "":
		// A session without a sid may be the one that was logged out, so it ends,
		// too.
		return []broker.LogoutKey{sidKey(token.Provider, token.SID), noSIDKey(token.Provider, token.Sub)}, nil
	case token.SID != "":
		return []broker.LogoutKey{sidKey(token.Provider, token.SID)}, nil
	case token.Sub != "":
		return []broker.LogoutKey{subKey(token.Provider, token.Sub)}, nil
	}
	return nil, refuse(broker.ErrInvalidRequest, "the logout token names neither sub nor sid")
}

// usedKey remembers a token by the hash of its id.
func usedKey(token broker.LogoutToken) broker.LogoutKey {
	sum := sha256.Sum256([]byte(token.ID))
	return broker.LogoutKey{Provider: token.Provider, Claim: "jti", Value: base64.RawURLEncoding.EncodeToString(sum[:])}
}

// logOut stores a logout. It never replaces a later one.
func logOut(tx broker.Tx, key broker.LogoutKey, at, expires time.Time) error {
	old, err := broker.Get[*broker.Logout](tx, key)
	switch {
	case err != nil && !isNotFound(err):
		return err
	case err == nil && !at.After(old.At):
		return nil
	}
	tx.Put(&broker.Logout{LogoutKey: key, At: at, Expires: expires})
	return nil
}

// A Revocation is a statement of a transmitter of shared security signals that sessions of
// a person have ended, or that the person's way to log in has changed.
type Revocation struct {
	Provider string
	Sub, SID string    // one may be empty; without a SID, all sessions of the person
	At       time.Time // sessions that were opened later are not meant
	Signal   *audit.SignalFacts
}

// Revoke ends the sessions that were opened before a revocation. It reports whether the
// revocation says more than earlier ones.
func (m *Manager) Revoke(ctx context.Context, r Revocation, now time.Time) (changed bool, err error) {
	ended, err := endedBy(broker.LogoutToken{Provider: r.Provider, Sub: r.Sub, SID: r.SID, ID: "-", Issued: now}, now)
	if err != nil {
		return false, err
	}
	record := audit.Record{Kind: audit.SessionClosed, End: &audit.EndFacts{How: "signal"}, Signal: r.Signal}
	if r.Sub != "" {
		record.Subject = &audit.Party{ID: r.Provider + "/" + r.Sub, Kind: string(broker.KindPerson)}
	}
	at := r.At.Add(logoutLeeway)
	if now.Before(at) {
		at = now
	}
	var reads []broker.Key
	for _, key := range ended {
		reads = append(reads, key)
	}
	err = m.write(ctx, reads, record, func(tx broker.Tx) error {
		news := false
		for _, key := range ended {
			old, err := broker.Get[*broker.Logout](tx, key)
			if err != nil && !isNotFound(err) {
				return err
			}
			news = news || err != nil || at.After(old.At)
			if err := logOut(tx, key, at, at.Add(m.cfg.Lasts)); err != nil {
				return err
			}
		}
		if !news {
			return broker.ErrUnchanged
		}
		return nil
	})
	return err == nil, ignoreUnchanged(err)
}
