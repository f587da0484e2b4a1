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

// made says what is known about what the lease's token made.
type made string

const (
	madeUnknown       made = "unknown"  // possibly something
	madeNothing       made = "nothing"  // certainly nothing
	madeToken         made = "token"    // the token itself is the credential
	madeLease         made = "lease"    // something that ends with the named lease
	madeExpiring      made = "other"    // something that ends only at its expiry
	madeExpiringLease made = "timed"    // the same, with a named lease
	madeWrapped       made = "wrapping" // something that only its holder can unwrap
)

func (h handle) encode() []byte {
	b, _ := json.Marshal(h) // a struct of strings always marshals
	return b
}

// expires notes that what was made ends only at its expiry. Revoking its lease,
// if there is one, still cleans up in Vault.
func (h *handle) expires() {
	if h.Made = madeExpiring; h.Lease != "" {
		h.Made = madeExpiringLease
	}
}
