package audit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"
)

// CampaignFacts describe an access review, or one of its items.
type CampaignFacts struct {
	ID         string
	Name       string
	Items      int64     // of the campaign; of a decision in bulk, the items that were decided together
	Item       int64     // the number of the item, from 1; zero: the record is about the whole campaign
	Permission string    // of the item: "permit agents-read-tickets", "mark spiffe://…", "member dba login/ana"
	Digest     Digest    // of a started campaign, of its items; of an item, of the permission as the person saw it
	Reviewer   string    // "group dba" or "person login/ana"
	Verdict    string    // keep, narrow, end
	Left       []string  // of narrow: the parts that remain
	Reason     Digest    // commitment
	Seed       Digest    // of a decision in bulk: it chooses the items for a second look
	Second     bool      // of a decision in bulk: the item was chosen for a second look
	Signed     bool      // of an item: decisions need a signature
	Deadline   time.Time // of a campaign
	Waiting    int64     // of a campaign: the items that wait for a decision
}

// campaignDomain separates the challenges of decisions on items from every other hash.
const campaignDomain = "accessbroker/campaign/v1\n"

// Challenge returns what a person's passkey signs for a decision on an item.
func (f *CampaignFacts) Challenge(person string, nonce Digest) Digest {
	item := binary.BigEndian.AppendUint64(nil, uint64(f.Item))
	o := NewObject().
		String("campaign", f.ID).
		Hex("digest", f.Digest).
		Hex("item", sha256.Sum256(item)).
		StringList("left", f.Left).
		Hex("nonce", nonce).
		String("permission", f.Permission).
		String("person", person).
		Hex("reason", f.Reason).
		String("verdict", f.Verdict)
	return sha256.Sum256(append([]byte(campaignDomain), o.Bytes()...))
}

// secondDomain separates the ranks of items from every other hash.
const secondDomain = "accessbroker/second-look/v1\n"

// SecondLook returns the items that a decision in bulk needs a second look at: a tenth,
// rounded up. The seed chooses them, so that an auditor can choose them again.
func SecondLook(seed Digest, items []int64) []int64 {
	type ranked struct {
		item int64
		rank Digest
	}
	list := make([]ranked, len(items))
	for i, item := range items {
		b := append([]byte(secondDomain), seed[:]...)
		list[i] = ranked{item, sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(item)))}
	}
	slices.SortFunc(list, func(a, b ranked) int { return cmp.Or(bytes.Compare(a.rank[:], b.rank[:]), cmp.Compare(a.item, b.item)) })
	chosen := make([]int64, 0, len(list)/10+1)
	for _, r := range list[:(len(list)+9)/10] {
		chosen = append(chosen, r.item)
	}
	slices.Sort(chosen)
	return chosen
}

func (f *CampaignFacts) fields(c *codec) {
	c.time("deadline", &f.Deadline)
	c.digest("digest", &f.Digest)
	c.text("id", &f.ID, maxWord)
	c.number("item", &f.Item)
	c.number("items", &f.Items)
	c.texts("left", &f.Left, maxScopes)
	c.text("name", &f.Name, maxWord)
	c.text("permission", &f.Permission, maxID+maxName)
	c.digest("reason", &f.Reason)
	c.text("reviewer", &f.Reviewer, maxID)
	c.flag("second", &f.Second)
	c.digest("seed", &f.Seed)
	c.flag("signed", &f.Signed)
	c.text("verdict", &f.Verdict, maxWord)
	c.number("waiting", &f.Waiting)
}
