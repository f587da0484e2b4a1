package inventory

import "accessbroker.internal/broker"

// A Query selects identities that records name.
type Query struct {
	After, Until string // only ids between the two; empty: all
	Limit        int
}

// MaxUses bounds the entitlements that are listed for one identity.
const MaxUses = 256

// An IdentityUse is how one identity used an entitlement.
type IdentityUse struct {
	Identity string
	Kind     broker.Kind
	Use
}
