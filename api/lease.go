package api

import "time"

// A Lease is the broker's record of one credential. It holds no secret.
type Lease struct {
	ID          string            `json:"id"`
	Request     string            `json:"request"`
	Status      string            `json:"status"`
	Holder      string            `json:"holder"`                 // SPIFFE ID, or person as "login/ana"
	OnBehalfOf  string            `json:"on_behalf_of,omitempty"` // whose rights are used
	Actors      []string          `json:"actors,omitempty"`       // who acted for them before the holder, the first one first
	Parent      string            `json:"parent,omitempty"`       // the lease whose token was exchanged
	Entitlement string            `json:"entitlement"`
	Issuer      string            `json:"issuer"`
	Scopes      []string          `json:"scopes,omitempty"`
	Parameters  map[string]string `json:"parameters,omitempty"`

	AuthorizationDetails []AuthorizationDetail `json:"authorization_details,omitempty"` // fine grants (RFC 9396)

	Type       string        `json:"type,omitempty"`
	Confirm    *Confirmation `json:"cnf,omitempty"` // what its token is bound to; absent: nothing
	Revocation string        `json:"revocation"`    // effect of a revocation; once ended: its actual effect
	OpenedAt   time.Time     `json:"opened_at"`
	ExpiresAt  time.Time     `json:"expires_at"`
	WorksUntil time.Time     `json:"works_until,omitzero"` // if a revocation does not stop it: when it stops by itself, as far as known
	Replaces   string        `json:"replaces,omitempty"`   // the lease of a lost answer, or the renewed lease
	EndHow     string        `json:"end_how,omitempty"`    // returned, revoked, replaced, expired, answer_lost, deadline, failed, unrecorded, fact_ended
	EndedBy    *EndedBy      `json:"ended_by,omitempty"`   // of fact_ended
	EndAskedAt time.Time     `json:"end_asked_at,omitzero"`
	EndedAt    time.Time     `json:"ended_at,omitzero"`
	LastError  string        `json:"last_error,omitempty"` // a stable code
	Calls      *CallCounts   `json:"calls,omitempty"`      // with its credential, as its holder states them; absent: none were reported
}

// A LeasePage is one page of a list, newest first.
type LeasePage struct {
	Leases []Lease `json:"leases"`
	Next   string  `json:"next_cursor,omitempty"` // empty on the last page
}
