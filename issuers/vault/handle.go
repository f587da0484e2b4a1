package vault

import "encoding/json"

// A handle ends a credential. It contains no secret. Handles are stored: their
// JSON names and values must not change.
type handle struct {
	Accessor string `json:"accessor"` // of the lease's token
	Made     made   `json:"made"`
	Lease    string `json:"lease,omitempty"`  // of Vault
	Mount    string `json:"mount,omitempty"`  // of the PKI engine
	Serial   string `json:"serial,omitempty"` // of a certificate of that engine
	At       string `json:"at"`               // identifies the Vault
}

// made is what is known about the result of the lease's token.
type made string

const (
	madeUnknown       made = "unknown"  // possibly a credential
	madeNothing       made = "nothing"  // certainly no credential
	madeToken         made = "token"    // the token itself is the credential
	madeLease         made = "lease"    // a credential that ends with the named lease
	madeExpiring      made = "other"    // a credential that ends only at its expiry
	madeExpiringLease made = "timed"    // the same, with a named lease
	madeWrapped       made = "wrapping" // a credential that only its holder can unwrap
)

func (h handle) encode() []byte {
	b, _ := json.Marshal(h) // a struct of strings always marshals
	return b
}

// expires notes that the credential ends only at its expiry. Revoking its Vault
// lease, if it has one, still cleans up in Vault.
func (h *handle) expires() {
	if h.Made = madeExpiring; h.Lease != "" {
		h.Made = madeExpiringLease
	}
}
