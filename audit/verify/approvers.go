package verify

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"accessbroker.internal/audit"
)

// An Approver is a passkey and its owner, as an auditor knows them from a source
// other than the log.
type Approver struct {
	Person     string `json:"person"`
	Credential []byte `json:"credential"`
	Public     []byte `json:"public"` // SubjectPublicKeyInfo
	RP         string `json:"rp"`
}

// ParseApprovers parses lines in the format of String. It skips empty lines and
// lines that begin with "#".
func ParseApprovers(text string) (list []Approver, err error) {
	for n, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		a := Approver{Person: words[0]}
		if len(words) == 4 {
			a.RP = words[1]
			if a.Credential, err = base64.RawURLEncoding.Strict().DecodeString(words[2]); err == nil {
				a.Public, err = base64.RawURLEncoding.Strict().DecodeString(words[3])
			}
		}
		if err != nil || len(a.Credential) == 0 || len(a.Public) == 0 {
			return nil, fmt.Errorf("line %d is not an approver; it needs person, relying party, credential and public key, as broker audit approvers prints them", n+1)
		}
		list = append(list, a)
	}
	return list, nil
}

// String returns the approver as one line for ParseApprovers.
func (a Approver) String() string {
	encode := base64.RawURLEncoding.EncodeToString
	return strings.Join([]string{a.Person, a.RP, encode(a.Credential), encode(a.Public)}, " ")
}

// Approvers reads a log and returns the passkeys that were enrolled and not
// removed, in the order of their enrolment. It verifies nothing.
func Approvers(ctx context.Context, src audit.Source) ([]Approver, error) {
	list := []Approver{}
	for item, err := range src.Items(ctx) {
		if err != nil {
			return nil, fmt.Errorf("reading the log: %w", err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", item.Index, err)
		}
		if r.Passkey == nil || r.Caller == nil {
			continue
		}
		switch r.Kind {
		case audit.PasskeyEnrolled:
			list = append(list, Approver{r.Caller.ID, r.Passkey.Credential, r.Passkey.Public, r.Passkey.RP})
		case audit.PasskeyRemoved:
			list = slices.DeleteFunc(list, func(a Approver) bool {
				return a.Person == r.Caller.ID && bytes.Equal(a.Credential, r.Passkey.Credential)
			})
		}
	}
	return list, nil
}
