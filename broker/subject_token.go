package broker

import (
	"time"

	"accessbroker.internal/audit"
)

// A SubjectToken is a token of a person that a caller presents to act on the person's
// behalf.
type SubjectToken struct {
	Token  string
	Method Method   // MethodIDJAG or MethodAccessToken
	Actor  Identity // the caller, by its own proof

	// Key and Certificate are the keys that the caller proved to have in this call: the
	// thumbprint of its DPoP key (RFC 7638), and the hash of its certificate (RFC 8705);
	// zero: none. A token that is bound to a key needs it.
	Key, Certificate audit.Digest

	// ClientID is the client_id of the call; empty: none. It must name the client that the
	// token was issued to, or the actor.
	ClientID string

	// Resource is the token audience that the call is for; empty: the call names none, or
	// not a token. A token for several resources is used for one.
	Resource string

	At time.Time
}
