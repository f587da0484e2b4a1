package ldap_test

import (
	"math/rand/v2"
	"net"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
)

// A directory may send any packet as an answer. None makes the broker panic.
func TestMalformedAnswers(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	answered := 0
	for range 40 {
		var answers [][]byte
		for id := range 3 {
			answers = append(answers, malformed(random, int64(id+1)))
		}
		done := make(chan struct{}, 8)
		_ = prepare(t, func(c net.Conn) {
			defer func() { _ = c.Close() }()
			for _, a := range answers {
				if _, err := ber.ReadPacket(c); err != nil {
					return
				}
				if _, err := c.Write(a); err != nil {
					return
				}
				done <- struct{}{}
			}
		})
		answered += len(done)
	}
	if answered < 40 {
		t.Errorf("the directory answered %d times, want at least 40", answered)
	}
}

// malformed returns an answer with the right number and random parts. Half of the answers
// to the first call accept the bind, so that others are read too.
func malformed(random *rand.Rand, id int64) []byte {
	p := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	if id == 1 && random.IntN(4) > 0 {
		bind := ber.Encode(ber.ClassApplication, ber.TypeConstructed, 1, nil, "")
		bind.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(0), ""))
		bind.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
		bind.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
		p.AppendChild(bind)
		return p.Bytes()
	}
	tags := []ber.Tag{1, 4, 5, 19, 7, 15, 24}
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tags[random.IntN(len(tags))], nil, "")
	for range random.IntN(4) {
		op.AppendChild(part(random, 3))
	}
	p.AppendChild(op)
	if random.IntN(2) == 0 {
		controls := ber.Encode(ber.ClassContext, ber.TypeConstructed, 0, nil, "")
		for range random.IntN(3) {
			controls.AppendChild(part(random, 3))
		}
		p.AppendChild(controls)
	}
	return p.Bytes()
}

func part(random *rand.Rand, depth int) *ber.Packet {
	switch n := random.IntN(6); {
	case n == 0:
		return ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, random.Int64(), "")
	case n == 1:
		return ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(random.IntN(90)), "")
	case n == 2:
		return ber.NewBoolean(ber.ClassUniversal, ber.TypePrimitive, ber.TagBoolean, true, "")
	case n == 3 || depth == 0:
		return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, []string{"", "cn=a", "1.2.840.113556.1.4.319", "\xff"}[random.IntN(4)], "")
	}
	tags := []ber.Tag{ber.TagSequence, ber.TagSet}
	p := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, tags[random.IntN(2)], nil, "")
	for range random.IntN(4) {
		p.AppendChild(part(random, depth-1))
	}
	return p
}
