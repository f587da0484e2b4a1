package policy

import (
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/broker"
)

// assumed returns the attestation of an identity, or the one that a workload of its trust
// domain has if it is not known.
func (e *Engine) assumed(who *broker.Identity) broker.Attestation {
	switch {
	case who.Attested != "" || who.Kind != broker.KindWorkload && who.Kind != broker.KindAgent:
		return who.Attested
	case slices.Contains(e.in.OIDCDomains, broker.TrustDomainOf(who.ID)):
		return broker.AttestedOIDC
	}
	return broker.AttestedSPIFFE
}

// ParseAttestation parses how a principal was attested, "spiffe" or "oidc"; empty: as the
// workloads of its trust domain are.
func (e *Engine) ParseAttestation(who broker.Identity, text string) (broker.Attestation, error) {
	a := broker.Attestation(text)
	switch {
	case text == "":
		return e.assumed(&who), nil
	case who.Kind != broker.KindWorkload && who.Kind != broker.KindAgent:
		return "", errors.New("only a workload is attested: remove it")
	case a != broker.AttestedSPIFFE && a != broker.AttestedOIDC:
		return "", fmt.Errorf("%q: write spiffe or oidc", text)
	}
	return a, nil
}
