package broker

import (
	"testing"

	"accessbroker.internal/audit"
)

// The commitment to a comment needs a random salt, or the comment could be guessed.
// A signature covers the salt, so a signed vote keeps it.
func TestSaltOfComment(t *testing.T) {
	given := [16]byte{1}
	for name, test := range map[string]struct {
		vote Vote
		want func(salt [16]byte) bool
	}{
		"no comment":      {Vote{}, func(salt [16]byte) bool { return salt == [16]byte{} }},
		"a comment":       {Vote{Comment: "x"}, func(salt [16]byte) bool { return salt != [16]byte{} }},
		"a given salt":    {Vote{Comment: "x", Salt: given}, func(salt [16]byte) bool { return salt == given }},
		"a signed vote":   {Vote{Comment: "x", Salt: given, Signature: &audit.SignatureFacts{}}, func(salt [16]byte) bool { return salt == given }},
		"signed, no salt": {Vote{Comment: "x", Signature: &audit.SignatureFacts{}}, func(salt [16]byte) bool { return salt == [16]byte{} }},
	} {
		if salt := test.vote.salt(); !test.want(salt) {
			t.Errorf("%s: got salt %x", name, salt)
		}
	}
}
