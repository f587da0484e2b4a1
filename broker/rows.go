package broker

import "errors"

// Get returns the row of a key as its type.
func Get[R Row](tx Tx, key Key) (R, error) {
	row, err := tx.Get(key)
	if err != nil {
		var none R
		return none, err
	}
	return row.(R), nil
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// keys makes a list of reads.
func keys[K Key](list []K) []Key {
	out := make([]Key, len(list))
	for i, k := range list {
		out[i] = k
	}
	return out
}

// blockKeys names every block that could stand between an identity and an
// entitlement.
func blockKeys(who Identity, e *Entitlement) []BlockKey {
	list := make([]BlockKey, 0, len(who.Paths)+4)
	list = append(list, BlockKey{"holder", who.ID}, BlockKey{"trust_domain", who.TrustDomain})
	for _, p := range who.Paths {
		list = append(list, BlockKey{"under", p})
	}
	if e != nil {
		list = append(list, BlockKey{"entitlement", e.Name}, BlockKey{"issuer", e.Issuer})
	}
	return list
}

// CheckBlocks refuses what the kill switch blocks. It runs in every issuing
// transaction, so that a block that is written stops whatever has not been
// committed before it.
func CheckBlocks(tx Tx, blocks []BlockKey) error {
	for _, key := range blocks {
		block, err := Get[*Block](tx, key)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if block.Lifted.IsZero() {
			return refuse(ErrBlocked, "access is blocked until an operator lifts the block")
		}
	}
	return nil
}
