package audit

import (
	"testing"
	"time"
)

func TestObjectIsCanonical(t *testing.T) {
	o := NewObject().
		String("zeta", "ä\u2028\x1f\"\\\n").
		Seconds("ttl", 90*time.Second).
		Hex("digest", digest(0xab)).
		StringList("list", []string{"b", "", "a"}).
		Object("inner", NewObject().String("b", "2").String("a", "1")).
		String("empty", "").Seconds("none", 0).Hex("nothing", Digest{}).StringList("no_list", nil).Object("no_object", NewObject())
	got := o.Bytes()
	if want := canonicalize(t, got); string(got) != string(want) {
		t.Errorf("got %s, RFC 8785 requires %s", got, want)
	}
	want := `{"digest":"abababababababababababababababababababababababababababababababab","inner":{"a":"1","b":"2"},"list":["b","","a"],"ttl":90,"zeta":"ä` + "\u2028" + `\u001f\"\\\n"}`
	if string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := string(AppendStrings([]byte("x"), map[string]string{"b": "", "a": "1"})); got != `x{"a":"1","b":""}` {
		t.Errorf("got map of strings %s", got)
	}
}

func BenchmarkObject(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		HashObject("accessbroker/request/v1", NewObject().
			Seconds("duration", time.Hour).Hex("effect", digest(1)).String("entitlement", "tickets-api").
			String("requester", "spiffe://acme.test/agent/triage").StringList("scopes", []string{"tickets:comment", "tickets:read"}).
			String("subject", "spiffe://acme.test/agent/triage").Seconds("ttl", time.Minute).
			Object("obligations", NewObject().Seconds("max_ttl", time.Hour)))
	}
}
