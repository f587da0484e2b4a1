package broker

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// Kind is the kind of an identity.
type Kind string

// The kinds of identities. KindNone is that of the zero Identity.
const (
	KindNone     Kind = ""
	KindWorkload Kind = "workload"
	KindAgent    Kind = "agent"    // a workload that the operator labelled as an AI agent
	KindPerson   Kind = "person"   // OIDC
	KindOperator Kind = "operator" // root on the admin socket

	// KindProvisioner is a client that provisions the people and groups of a provider. It
	// has no rights apart from that.
	KindProvisioner Kind = "provisioner"
)

// Method is how an identity was proved.
type Method string

// The methods of proof.
const (
	MethodX509SVID    Method = "x509-svid"
	MethodJWTSVID     Method = "jwt-svid"
	MethodSession     Method = "session" // a broker session, opened by an OpenID provider's ID token
	MethodAdminSocket Method = "admin-socket"
	MethodSCIMToken   Method = "scim-token"   // signed by the broker for one source
	MethodBrokerToken Method = "broker-token" // an access token that the broker issued for its own MCP endpoint
	MethodOIDCToken   Method = "oidc-token"   // an OIDC token of a workload, which a rule of the operator maps to a SPIFFE ID

	// These prove on whose behalf a caller acts. Only an access token for the MCP endpoint
	// proves who calls.
	MethodIDJAG       Method = "id-jag"       // an identity assertion JWT authorization grant of an OpenID provider
	MethodAccessToken Method = "access-token" // an access token of an OpenID provider, for an audience that is reserved for delegation, or for the MCP endpoint
)

// Attestation is how a workload was attested before it got its proof. Only a workload has
// one.
type Attestation string

// The attestations. Policies see them as principal.attested. The zero Attestation is neither.
const (
	AttestedSPIFFE Attestation = "spiffe" // it has an SVID
	AttestedOIDC   Attestation = "oidc"   // it has an OIDC token, which a rule of the operator maps to its SPIFFE ID
)

// An Identity is a proven caller. Only package attest makes one from a proof.
// The zero Identity is not a caller and has no rights.
//
// The labels (Kind agent, Team, Accountable, Purpose, Model, Ceiling, Ends, Accounts,
// Suppliers) come from the rules that decide,
// not from attest, so that a decision and the revision that it names always
// match.
type Identity struct {
	ID          string   // the SPIFFE ID, "spiffe://acme.test/agent/triage"; for a person "<provider>/<sub>"
	TrustDomain string   // "acme.test"; empty for a person
	Paths       []string // the full SPIFFE ID and each prefix of its path, longest first: ".../agent/triage", ".../agent"
	Kind        Kind
	Attested    Attestation // of a workload
	Proof       Proof
	Once        []Spent // with which nothing is issued twice; not stored
	Team        string
	Accountable []string  // people accountable for a workload
	Purpose     string    // of a workload, in the operator's words
	Model       string    // of an agent
	Ceiling     *Ceiling  // nil: policies alone bound what it may have; not stored
	Ends        time.Time // when its access ends by its mark; zero: not stated
	Accounts    []string  // all accounts of a person who has several, the main one first
	Suppliers   []string  // sorted; nil: internal
	Person      *Person   // of KindPerson only
	Also        []string  // other proofs of this identity in the same call, as "<method> <SHA-256>"
}

// A Person is what an OpenID provider asserts about a person. Only groups.yaml
// derives groups from it; names and addresses decide nothing.
type Person struct {
	Provider string    // the configured name of the provider; the identity's ID is Provider + "/" + sub
	Groups   []string  // the values of the groups claim
	Manager  string    // the manager claim, as "<provider>/<sub>"; empty: none
	Sponsor  string    // the sponsor claim, as "<provider>/<sub>"; empty: none
	Ends     time.Time // the claimed end of their access; zero: none, or the provider states none
	Claimed  time.Time // when the provider asserted this
	Login    time.Time // when the person logged in at the provider (auth_time); zero: unknown
	Name     string    // for display, as is Email
	Email    string
	// EmailVerified means that the provider vouches for Email (email_verified). Unlike
	// the others, a verified address selects the account that a membership is for.
	EmailVerified bool

	// StatesEnd means that the provider states the ends of people, so that a person without
	// one has none.
	StatesEnd bool

	// Directory is the source that states Groups and Manager in place of the provider's
	// claims; see Rules.WithLabels.
	Directory string
}

// A Proof is the evidence of an identity. It has no secret.
type Proof struct {
	Method  Method
	SHA256  audit.Digest // of the leaf certificate's DER (RFC 8705 x5t#S256), or of the token's bytes
	Expires time.Time    // NotAfter, or exp; nothing is issued past it
}

// Valid reports whether the proof is valid at now, without leeway.
func (p Proof) Valid(now time.Time) bool { return p.Method != "" && now.Before(p.Expires) }

// A Caller is who makes a call, on whose behalf, and when.
//
// The Actor proves its identity in this call. The Subject is the identity whose
// rights are used. Without delegation the two are equal. The domain uses the
// Actor for facts about the call: whether the proof is valid, the certificate
// that a credential is bound to, and the caller in a record. It uses the
// Subject for rights: the requester of a request, the holder of a lease, the
// principal of a policy decision, blocks, limits, and what may be viewed. A
// person's session requires that the two are equal.
type Caller struct {
	Actor   Identity
	Subject Identity
	At      time.Time // when the call began; decisions are made as of At

	// Key is the thumbprint (RFC 7638) of the key that the caller proved to hold with DPoP
	// (RFC 9449) in this call; zero: none. Once is the proof, with which nothing is issued
	// twice, and OnceUntil is when no proof of that time is accepted any longer.
	Key       audit.Digest
	Once      SpentKey
	OnceUntil time.Time
}

// Self returns a Caller that acts for itself.
func Self(who Identity, at time.Time) Caller { return Caller{Actor: who, Subject: who, At: at} }

// RequireSession refuses every caller except a person with a broker session. An ID
// token, an access token or an SVID proves who calls, but not that a person sees
// the request and decides.
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

// WithProof returns the identity with another proof of it in the same call. Credentials
// stay bound to the first proof; the identity is proven until the earliest one expires.
func (who Identity) WithProof(p Proof) Identity {
	who.Also = append(slices.Clone(who.Also), fmt.Sprintf("%s %s", p.Method, p.SHA256))
	if p.Expires.Before(who.Proof.Expires) {
		who.Proof.Expires = p.Expires
	}
	return who
}

// With returns the identity with the proof of other, which proves the same one in the same
// call. It counts as attested by SPIFFE only if both are.
func (who Identity) With(other Identity) Identity {
	who = who.WithProof(other.Proof)
	who.Once = slices.Concat(who.Once, other.Once)
	if who.Attested != other.Attested {
		who.Attested = AttestedOIDC
	}
	return who
}

// Party returns the identity as records show it; nil for the zero identity, which
// is the broker itself.
func (who Identity) Party() *audit.Party {
	if who.Kind == KindNone {
		return nil
	}
	p := new(audit.Party)
	who.fill(p)
	return p
}

func (who *Identity) fill(p *audit.Party) {
	attested := ""
	if who.Attested == AttestedOIDC {
		attested = string(who.Attested)
	}
	*p = audit.Party{ID: who.ID, Attested: attested, Accounts: who.Accounts, Also: who.Also, Kind: string(who.Kind), Method: string(who.Proof.Method), Proof: who.Proof.SHA256, Expires: who.Proof.Expires}
}

// A clock returns the current time in a call that began at a given time.
type clock struct{ began, start time.Time }

func startClock(now time.Time) clock { return clock{now, time.Now()} }

func (c clock) now() time.Time { return c.began.Add(time.Since(c.start)) }

// SPIFFEPaths returns the paths of a SPIFFE ID that policy may name, longest
// first: the ID itself and each prefix that ends at a segment, without the
// trust domain.
//
// The ID must be valid; package attest checks it.
func SPIFFEPaths(id string) []string {
	domainEnd := strings.IndexByte(id[min(len(spiffeScheme), len(id)):], '/')
	if domainEnd < 0 {
		return nil
	}
	domainEnd += len(spiffeScheme)
	paths := make([]string, 0, strings.Count(id[domainEnd:], "/"))
	for end := len(id); end > domainEnd; end = strings.LastIndexByte(id[:end], '/') {
		paths = append(paths, id[:end])
	}
	return paths
}

// TrustDomainOf returns the trust domain of a valid SPIFFE ID; empty for other IDs.
func TrustDomainOf(id string) string {
	rest, ok := strings.CutPrefix(id, spiffeScheme)
	if !ok {
		return ""
	}
	domain, _, _ := strings.Cut(rest, "/")
	return domain
}
