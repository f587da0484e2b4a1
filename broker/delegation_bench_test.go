package broker_test

import (
	"context"
	"testing"

	"accessbroker.internal/broker"
)

// BenchmarkDelegated issues credentials to 64 concurrent callers, for themselves and on behalf
// of a person by proofs that count once: the latter take two decisions and one more row.
func BenchmarkDelegated(b *testing.B) {
	for name, ask := range map[string]func() broker.Ask{
		"plain": func() broker.Ask { return read("tickets:read") },
		"delegated": func() broker.Ask {
			d := onBehalf("ana", noon)
			d.ID, d.IDUntil = "https://login.acme.test "+broker.NewRequestID(noon).String(), noon.Add(broker.ClaimsFor)
			return delegated(d, "tickets:read")
		},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, worldConfig{policies: delegationPolicies, issuers: map[string]broker.Issuer{"tickets": signer{}}})
			b.ReportAllocs()
			b.SetParallelism(32) // times two processors
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, err := w.broker.AskAndCollect(context.Background(), broker.Self(workload(triage, noon), noon), ask(), broker.IdempotencyKey{}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
