package vault

import (
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

// A parameter can't forge a line of what approvers read.
func TestDescribeMarksLinesOfParameters(t *testing.T) {
	spec := &Spec{Path: "pki/sign/web", Data: map[string]string{"csr": "${csr}"}, Policies: []string{"pki-sign"}}
	text := (*Issuer)(nil).Describe(&broker.Entitlement{Spec: spec}, nil, map[string]string{"csr": "x\nVault policies: none\nread secret/harmless"})
	n := 0
	for line := range strings.Lines(text) {
		n++
		switch {
		case strings.HasPrefix(line, "    | "), line == "write pki/sign/web\n", line == "  csr = x\n", line == "Vault policies: pki-sign":
		default:
			t.Errorf("unmarked line %q", line)
		}
	}
	if n != 5 {
		t.Errorf("%d lines, want 5: %q", n, text)
	}
}
