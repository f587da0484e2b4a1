package membership

import (
	"context"
	"errors"
	"strings"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Directory is a system with groups. It is safe for concurrent use, and every call
// returns by its context's deadline.
//
// Its errors are broker.ErrIssuerRefused and broker.ErrIssuerUnavailable, and ErrGone.
type Directory interface {
	// Find returns the place of a member in the group of an entitlement's spec. name is
	// the member's name in the directory. It changes nothing.
	Find(ctx context.Context, spec any, name string) (Place, error)

	// Contains reports whether the group has the member. It returns ErrGone if the group
	// no longer exists; a member that no longer exists is in no group.
	Contains(ctx context.Context, p Place) (bool, error)

	// Add adds the member, and reports whether that changed the group. If the directory
	// does not state it, Add returns true.
	Add(ctx context.Context, p Place) (added bool, err error)

	// Remove removes the member. It is no error if the group does not have the member.
	Remove(ctx context.Context, p Place) error
}

// ErrGone means that a group or a member no longer exists.
var ErrGone = errors.New("the group or the member no longer exists")

// A Place is a member of a group. It is stored in handles: the JSON names of its fields
// must not change. It has no secret.
type Place struct {
	At         string `json:"at"`                  // identifies the system by its address
	Group      string `json:"group"`               // by the identifier that the system never changes
	Member     string `json:"member"`              // likewise
	Kind       string `json:"kind,omitempty"`      // what the group is, if the directory has several kinds
	Attribute  string `json:"attribute,omitempty"` // of the group, that lists the members
	Value      string `json:"value,omitempty"`     // of the attribute; empty: Member
	GroupName  string `json:"group_name"`          // for people, as is MemberName
	MemberName string `json:"member_name"`
}

// ID returns the ID of the membership.
func (p Place) ID() broker.MembershipID {
	return broker.MembershipID(audit.HashObject("accessbroker/membership/v1", audit.NewObject().
		String("at", p.At).String("group", p.Group).String("kind", p.Kind).String("member", p.Member)))
}

// Names map the identities of the broker to the names of members. The zero value maps
// none.
type Names struct {
	// Accounts are the names of single identities: SPIFFE IDs, and people as
	// "<provider>/<sub>".
	Accounts map[string]string

	// People are the sources of the names of people, by provider.
	People map[string]Source
}

// A Source is where the name of a person comes from.
type Source string

// The sources.
const (
	FromSubject Source = "sub"   // the person's subject at the provider
	FromEmail   Source = "email" // the address that the provider vouches for, as of the last login
)

// of returns the name of the member that the identity is.
func (n Names) of(id string, account func(broker.PersonKey) (*broker.Account, error)) (string, error) {
	if name := n.Accounts[id]; name != "" {
		return name, nil
	}
	provider, sub, isPerson := strings.Cut(id, "/")
	if strings.HasPrefix(id, "spiffe://") || !isPerson {
		return "", refuse("the operator's file names no member for this workload: add it to the members.accounts of the issuer")
	}
	switch n.People[provider] {
	case FromSubject:
		return sub, nil
	case FromEmail:
		a, err := account(broker.PersonKey(id))
		if err != nil {
			return "", err
		}
		if a.Email == "" || !a.EmailVerified {
			return "", refuse("your OpenID provider does not vouch for an email address of yours (email_verified), by which the directory would know you")
		}
		return a.Email, nil
	}
	return "", refuse("the operator's file names no member for this person: add the provider to the members.people of the issuer, or the person to its members.accounts")
}

// refuse returns a refusal by the issuer.
func refuse(detail string) error {
	return &broker.Refusal{Err: broker.ErrIssuerRefused, Detail: detail}
}
