package broker

import (
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// Kind says what an identity is.
type Kind string

// The kinds of identities. KindNone, the zero value, is nobody.
const (
	KindNone     Kind = ""
	KindWorkload Kind = "workload"
	KindAgent    Kind = "agent"    // a workload that the operator marked as an AI agent
	KindPerson   Kind = "person"   // OIDC
	KindOperator Kind = "operator" // root on the admin socket
)

// Method says how an identity was proved.
type Method string

// The methods of proof.
const (
	MethodX509SVID    Method = "x509-svid"
	MethodJWTSVID     Method = "jwt-svid"
	MethodSession     Method = "session" // a broker session, opened by an OpenID provider's ID token
	MethodAdminSocket Method = "admin-socket"
)

// An Identity is who a caller was proved to be. Only package attest makes one
// from a proof; the zero Identity is nobody and may do nothing.
//
// Marks (Kind agent, Team, Accountable) are put on by the broker from the
// rules that decide, never by attest, so that what a decision read and the
// revision it names are always the same.
type Identity struct {
	ID          string   // the SPIFFE ID, "spiffe://acme.test/agent/triage"; for a person "<provider>/<sub>"
	TrustDomain string   // "acme.test"; empty for a person
	Paths       []string // the full SPIFFE ID and each prefix of its path, longest first: ".../agent/triage", ".../agent"
	Kind        Kind
	Proof       Proof
	Team        string
	Accountable []string // people who answer for an agent
	Person      *Person  // of KindPerson only
}

// A Person is what an OpenID provider says of somebody. Only groups.yaml makes
// groups of it; nothing is decided by a name or an address.
type Person struct {
	Provider string    // the operator's name of the OpenID provider; the identity's ID is Provider + "/" + sub
	Groups   []string  // the values of its groups claim
	Manager  string    // its manager claim, as "<provider>/<sub>"; empty: it has none
	Claimed  time.Time // when it said so
	Login    time.Time // when the person proved to it who they are (auth_time); zero: it does not say
	Name     string    // for display only, as Email is
	Email    string
}

// A Proof is what an identity was proved with. It holds no secret.
type Proof struct {
	Method  Method
	SHA256  audit.Digest // of the leaf certificate's DER (RFC 8705 x5t#S256), or of the token's bytes
	Expires time.Time    // NotAfter, or exp; nothing is issued past it
}

// Valid says whether the proof holds at now, without leeway.
func (p Proof) Valid(now time.Time) bool { return p.Method != "" && now.Before(p.Expires) }

// A Caller is on whose behalf a domain method runs, who calls it, and when.
//
// The Actor proves itself in this call; the Subject is whose rights are used.
// Without delegation the two are equal. The domain uses the Actor for what is
// about the call itself: the validity of the proof, the certificate that a
// credential is bound to, and the caller of an audit record. It uses the
// Subject for what is about rights: the requester of a request, the holder of a
// lease, the principal of a policy decision, blocks, limits, and what may be
// seen. Methods for people in a session of their own require that the two are
// equal.
type Caller struct {
	Actor   Identity
	Subject Identity
	At      time.Time // when the call began; everything that the call decides is decided as of At
}

// Self returns a Caller that acts for itself.
func Self(who Identity, at time.Time) Caller { return Caller{Actor: who, Subject: who, At: at} }

// RequireSession refuses every caller except a person with a broker session. An
// ID token, an access token or an SVID proves who calls, but not that a person
// looks at what they decide.
func (c Caller) RequireSession() error {
	who := c.Actor
	switch {
	case who.Kind != KindPerson || who.Proof.Method != MethodSession || who.Person == nil || who.ID != c.Subject.ID:
		return refuse(ErrSessionRequired, "log in to the broker: this takes a person with a session")
	case !who.Proof.Valid(c.At):
		return refuse(ErrProofExpired, "your session has ended: log in again")
	}
	return nil
}

// at returns the caller at a later time of a long call.
func (c Caller) at(t time.Time) Caller {
	c.At = t
	return c
}

// labelled returns the caller with the operator's labels on both identities.
func (c Caller) labelled(rules *Rules) Caller {
	c.Actor, c.Subject = rules.WithLabels(c.Actor), rules.WithLabels(c.Subject)
	return c
}

// Party returns the identity as records show it; nil for the zero identity, which
// is the broker itself.
func (who Identity) Party() *audit.Party {
	if who.Kind == KindNone {
		return nil
	}
	return &audit.Party{ID: who.ID, Kind: string(who.Kind), Method: string(who.Proof.Method), Proof: who.Proof.SHA256, Expires: who.Proof.Expires}
}

// SPIFFEPaths gives the ancestors of a SPIFFE ID that policy may name: the ID
// itself and each prefix of its path that ends at a segment, longest first.
// The trust domain is not among them.
//
// The id must be valid (package attest checks that).
func SPIFFEPaths(id string) []string {
	const scheme = "spiffe://"
	domainEnd := strings.IndexByte(id[min(len(scheme), len(id)):], '/')
	if domainEnd < 0 {
		return nil
	}
	domainEnd += len(scheme)
	paths := make([]string, 0, strings.Count(id[domainEnd:], "/"))
	for end := len(id); end > domainEnd; end = strings.LastIndexByte(id[:end], '/') {
		paths = append(paths, id[:end])
	}
	return paths
}
