package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// A Transmitter sends shared security signals.
type Transmitter struct {
	Name      string    `json:"name"`
	Provider  string    `json:"provider"`            // whose accounts its events may be about
	Stream    string    `json:"stream"`              // enabled, paused, disabled: as the transmitter stated last
	HeardAt   time.Time `json:"heard_at,omitzero"`   // when its stream was last known to work, since the broker's start
	Held      int       `json:"held"`                // events that wait for a person's decision
	HeldSince time.Time `json:"held_since,omitzero"` // when its events began to be held
}

// Transmitters are all transmitters, by name.
type Transmitters struct {
	Transmitters []Transmitter `json:"transmitters"`
}

// HeldEvents are the events of a transmitter that wait for a decision.
type HeldEvents struct {
	Transmitter Transmitter    `json:"transmitter"`
	Events      int            `json:"events"`  // that a decision is about; later ones are judged anew
	Through     int64          `json:"through"` // the number of the last of them
	Digest      string         `json:"digest"`  // of exactly these events
	ByKind      map[string]int `json:"by_kind"`
	People      int            `json:"people"` // whom they name
	Leases      int64          `json:"leases"` // that would end now
	Own         bool           `json:"own,omitempty"`
	First       []HeldEvent    `json:"first"` // the first 50
}

// A HeldEvent is one event that waits.
type HeldEvent struct {
	Number     int64     `json:"number"`
	Kind       string    `json:"kind"` // session_revoked, credential_change, account_disabled, account_enabled, account_purged
	Person     string    `json:"person,omitempty"`
	Session    string    `json:"session,omitempty"` // the provider's session id
	Reason     string    `json:"reason,omitempty"`
	HappenedAt time.Time `json:"happened_at"`
	HeldAt     time.Time `json:"held_at"`
}

// A HeldDecision releases or discards held events.
type HeldDecision struct {
	Decision string `json:"decision"` // release or discard
	Through  int64  `json:"through"`
	Digest   string `json:"digest"`
	Reason   string `json:"reason"`
}

// The decisions about held events.
const (
	ReleaseEvents = "release"
	DiscardEvents = "discard"
)

// A Clearing names a person about whom a transmitter is no longer believed.
type Clearing struct {
	Person string `json:"person"`
}

// Signals calls the endpoints of shared security signals. They need the action block.
type Signals struct{ client *Client }

// NewSignals returns the calls of a client.
func NewSignals(c *Client) Signals { return Signals{c} }

// Transmitters lists the transmitters.
func (s Signals) Transmitters(ctx context.Context) (*Transmitters, error) {
	return fetch[Transmitters](ctx, s.client, call{method: http.MethodGet, path: "/v1/signals", retry: true})
}

// Held returns the events of a transmitter that wait for a decision.
func (s Signals) Held(ctx context.Context, transmitter string) (*HeldEvents, error) {
	return fetch[HeldEvents](ctx, s.client, call{method: http.MethodGet, path: "/v1/signals/" + url.PathEscape(transmitter), retry: true})
}

// Decide releases or discards the held events of a transmitter.
func (s Signals) Decide(ctx context.Context, transmitter string, d HeldDecision) (*HeldEvents, error) {
	return fetch[HeldEvents](ctx, s.client, call{method: http.MethodPost, path: "/v1/signals/" + url.PathEscape(transmitter), body: d})
}

// Clear forgets what a transmitter stated about a person.
func (s Signals) Clear(ctx context.Context, transmitter, person string) error {
	return s.client.do(ctx, call{method: http.MethodPost, path: "/v1/signals/" + url.PathEscape(transmitter) + "/clear", body: Clearing{person}}, nil)
}
