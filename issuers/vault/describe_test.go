package vault

import (
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

// What approvers are shown holds no line of the requester's that passes for one
// of ours.
func TestVaultDescribesInOurWords(t *testing.T) {
	spec := &Spec{Path: "pki/sign/web", Data: map[string]string{"csr": "${csr}"}, Policies: []string{"pki-sign"}}
	text := (*Issuer)(nil).Describe(&broker.Entitlement{Spec: spec}, nil, map[string]string{"csr": "x\nVault policies: none\nread secret/harmless"})
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "    | "), line == "write pki/sign/web\n", line == "  csr = x\n", line == "Vault policies: pki-sign":
		default:
			t.Errorf("%q", line)
		}
	}
}
