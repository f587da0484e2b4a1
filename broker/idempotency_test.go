package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// The id is stored, so another derivation would lose every key of the last day.
func TestIdempotencyIDIsStable(t *testing.T) {
	const want = "d2422bc254bd067f3cfb480eb989d213d8b607d67bb72323ea0d5390a92367ac"
	key := NewIdempotencyKey("spiffe://acme.test/agent", "POST", "/v1/credentials", "key-1", []byte("{}"))
	if got := hex.EncodeToString(key.ID[:]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if key.Body != sha256.Sum256([]byte("{}")) {
		t.Errorf("got the body %x, want its SHA-256", key.Body)
	}
}

func TestIdempotencyKeyIsScoped(t *testing.T) {
	seen := map[IdempotencyID]int{}
	for i, parts := range [][4]string{
		{"a", "POST", "/x", "k"}, {"b", "POST", "/x", "k"}, {"a", "PUT", "/x", "k"}, {"a", "POST", "/y", "k"}, {"a", "POST", "/x", "l"},
		{"aP", "OST", "/x", "k"}, // the same bytes, divided elsewhere
	} {
		id := NewIdempotencyKey(parts[0], parts[1], parts[2], parts[3], nil).ID
		if other, ok := seen[id]; ok {
			t.Errorf("calls %d and %d: got the same key, want different keys", other, i)
		}
		seen[id] = i
	}
	if key := NewIdempotencyKey("a", "POST", "/x", "", nil); key != (IdempotencyKey{}) {
		t.Errorf("call without the header: got key %x, want none", key.ID)
	}
}
