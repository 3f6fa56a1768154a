//! The steps of the path as subprograms of a hook.

/// The steps as subprograms on a context: their stack frames do not add up, nor do those of the
/// families.
macro_rules! subprograms {
    ($context:ty) => {
        subprograms!(
            $context,
            Subprograms4,
            V4,
            fast4,
            begin4,
            quote4,
            unreadable4,
            track4,
            refresh4,
            choose4,
            create4,
            finish4,
            answer4,
            tell_begun4,
            tell_ended4,
            log_begun4,
            log_ended4
        );
        subprograms!(
            $context,
            Subprograms6,
            V6,
            fast6,
            begin6,
            quote6,
            unreadable6,
            track6,
            refresh6,
            choose6,
            create6,
            finish6,
            answer6,
            tell_begun6,
            tell_ended6,
            log_begun6,
            log_ended6
        );
    };
    (
        $context:ty, $name:ident, $family:ty, $fast:ident, $begin:ident, $quote:ident,
        $unreadable:ident, $track:ident, $refresh:ident, $choose:ident, $create:ident,
        $finish:ident, $answer:ident, $tell_begun:ident, $tell_ended:ident, $log_begun:ident,
        $log_ended:ident
    ) => {
        struct $name {
            ctx: $context,
            hook: u32,
            l3: u32,
        }

        impl Steps for $name {
            #[inline(always)]
            fn fast(&mut self) -> Step {
                unpack($fast(self.ctx, self.hook, self.l3))
            }

            #[inline(always)]
            fn begin(&mut self) -> Step {
                unpack($begin(self.ctx, self.hook, self.l3))
            }

            #[inline(always)]
            fn quote(&mut self) -> Step {
                unpack($quote(self.ctx, self.hook))
            }

            #[inline(always)]
            fn unreadable(&mut self, reason: Counter) -> Step {
                unpack($unreadable(
                    self.ctx,
                    self.l3,
                    pack(Step::Unreadable(reason)),
                ))
            }

            #[inline(always)]
            fn track(&mut self) -> Step {
                unpack($track(self.ctx, self.hook))
            }

            #[inline(always)]
            fn refresh(&mut self) -> Step {
                unpack($refresh(self.ctx, self.hook))
            }

            #[inline(always)]
            fn choose(&mut self) -> Step {
                unpack($choose(self.ctx, self.hook))
            }

            #[inline(always)]
            fn create(&mut self) -> Step {
                unpack($create(self.ctx, self.hook))
            }

            #[inline(always)]
            fn finish(&mut self) -> Step {
                unpack($finish(self.ctx, self.hook))
            }

            #[inline(always)]
            fn answer(&mut self, reason: Counter, answer: Answer) -> Step {
                unpack($answer(
                    self.ctx,
                    self.l3,
                    pack(Step::Answer(reason, answer)),
                ))
            }

            #[inline(always)]
            fn tell_begun(&mut self) -> Step {
                if log::is_on() {
                    $log_begun(self.ctx, self.hook);
                }
                unpack($tell_begun(self.ctx, self.hook))
            }

            #[inline(always)]
            fn tell_ended(&mut self, step: Step) {
                if log::is_on() {
                    $log_ended(self.ctx, self.hook, self.l3, pack(step));
                }
                $tell_ended(self.ctx, self.hook, self.l3, pack(step));
            }
        }

        #[inline(never)]
        fn $fast(ctx: $context, hook: u32, l3: u32) -> u64 {
            pack(steps::fast::<$family, _>(ctx, hook, l3))
        }

        #[inline(never)]
        fn $begin(ctx: $context, hook: u32, l3: u32) -> u64 {
            pack(steps::begin::<$family, _>(ctx, hook, l3))
        }

        #[inline(never)]
        fn $quote(ctx: $context, hook: u32) -> u64 {
            pack(steps::quote::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $unreadable(ctx: $context, l3: u32, step: u64) -> u64 {
            pack(steps::unreadable::<$family, _>(ctx, l3, unpack(step)))
        }

        #[inline(never)]
        fn $track(ctx: $context, hook: u32) -> u64 {
            pack(steps::track::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $refresh(ctx: $context, hook: u32) -> u64 {
            pack(steps::refresh::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $choose(ctx: $context, hook: u32) -> u64 {
            pack(steps::choose::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $create(ctx: $context, hook: u32) -> u64 {
            pack(steps::create::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $finish(ctx: $context, hook: u32) -> u64 {
            pack(steps::finish::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $answer(ctx: $context, l3: u32, step: u64) -> u64 {
            pack(steps::answer::<$family, _>(ctx, l3, unpack(step)))
        }

        #[inline(never)]
        fn $tell_begun(ctx: $context, hook: u32) -> u64 {
            pack(steps::tell_begun::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $tell_ended(ctx: $context, hook: u32, l3: u32, step: u64) {
            steps::tell_ended::<$family, _>(ctx, hook, l3, unpack(step));
        }

        #[inline(never)]
        fn $log_begun(ctx: $context, hook: u32) {
            steps::log_begun::<$family, _>(ctx, hook);
        }

        #[inline(never)]
        fn $log_ended(ctx: $context, hook: u32, l3: u32, step: u64) {
            steps::log_ended::<$family, _>(ctx, hook, l3, unpack(step));
        }
    };
}
pub(super) use subprograms;
