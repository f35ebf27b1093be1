"""Names of tasks, and the sets that benchmarks are made of."""

# The games that ale-py 0.12 registers as ALE/<Game>-v5.
_ATARI_NAMES = """
    Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis Atlantis2 Backgammon BankHeist BasicMath
    BattleZone BeamRider Berzerk Blackjack Bowling Boxing Breakout Carnival Casino Centipede ChopperCommand CrazyClimber
    Crossbow Darkchambers Defender DemonAttack DonkeyKong DoubleDunk Earthworld ElevatorAction Enduro Entombed Et
    FishingDerby FlagCapture Freeway Frogger Frostbite Galaxian Gopher Gravitar Hangman HauntedHouse Hero
    HumanCannonball IceHockey Jamesbond JourneyEscape Kaboom Kangaroo KeystoneKapers KingKong Klax Koolaid Krull
    KungFuMaster LaserGates LostLuggage MarioBros MiniatureGolf MontezumaRevenge MrDo MsPacman NameThisGame Othello
    Pacman Phoenix Pitfall Pitfall2 Pong Pooyan PrivateEye Qbert Riverraid RoadRunner Robotank Seaquest SirLancelot
    Skiing Solaris SpaceInvaders SpaceWar StarGunner Superman Surround Tennis Tetris TicTacToe3D TimePilot Trondead
    Turmoil Tutankham UpNDown Venture VideoCheckers VideoChess VideoCube VideoPinball WizardOfWor WordZapper YarsRevenge
    Zaxxon
"""
ATARI: tuple[str, ...] = tuple(f"atari:{game}" for game in _ATARI_NAMES.split())

# The games of the Atari-100k benchmark. Source: SimPLe (Kaiser et al. 2020), table of games.
_ATARI26_NAMES = """
    Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber DemonAttack Freeway
    Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong PrivateEye Qbert RoadRunner Seaquest
    UpNDown
"""
ATARI26: tuple[str, ...] = tuple(f"atari:{game}" for game in _ATARI26_NAMES.split())

# The tasks of this package, learnt in minutes: five of mow.envs.tiny_tasks, two of mow.envs.tiny_memory, whose state no
# single picture shows.
TINY5: tuple[str, ...] = ("tiny:catch", "tiny:goal", "tiny:dodge", "tiny:pole", "tiny:slide")
TINY7: tuple[str, ...] = (*TINY5, "tiny:bounce", "tiny:chase")

# The tasks of mow.envs.vec, all with states.
VEC4: tuple[str, ...] = ("vec:lq", "vec:button", "vec:reach", "vec:pendulum")

# The 50 tasks of Meta-World, as its version 3 calls them less their "-v3" and in its order.
# Source: Yu et al. 2020, table of tasks; metaworld 3.1, MT50.
_METAWORLD_NAMES = """
    assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock hand-insert drawer-close drawer-open faucet-open faucet-close hammer handle-press-side handle-press
    handle-pull-side handle-pull lever-pull pick-place-wall pick-out-of-hole pick-place plate-slide plate-slide-side
    plate-slide-back plate-slide-back-side peg-insert-side peg-unplug-side soccer stick-push stick-pull push push-wall
    push-back reach reach-wall shelf-place sweep-into sweep window-open window-close
"""
MT50: tuple[str, ...] = tuple(f"metaworld:{name}-v3" for name in _METAWORLD_NAMES.split())

# Source: Yu et al. 2020; metaworld 3.1, MT10, in its order.
_MT10_NAMES = """
    reach push pick-place door-open drawer-open drawer-close button-press-topdown peg-insert-side window-open
    window-close
"""
MT10: tuple[str, ...] = tuple(f"metaworld:{name}-v3" for name in _MT10_NAMES.split())

# The tasks of the DeepMind Control Suite, "domain-task", in the order of dm_control 1.0. Left out are lqr-lqr_2_1 and
# lqr-lqr_6_2: their seed draws the physics itself, so that each seed is another task.
# Source: Tunyasuvunakool et al. 2020, table of domains.
_DMC_NAMES = """
    acrobot-swingup acrobot-swingup_sparse ball_in_cup-catch cartpole-balance cartpole-balance_sparse cartpole-swingup
    cartpole-swingup_sparse cartpole-two_poles cartpole-three_poles cheetah-run dog-stand dog-walk dog-trot dog-run
    dog-fetch finger-spin finger-turn_easy finger-turn_hard fish-upright fish-swim hopper-stand hopper-hop
    humanoid-stand humanoid-walk humanoid-run humanoid-run_pure_state humanoid_CMU-stand humanoid_CMU-walk
    humanoid_CMU-run manipulator-bring_ball manipulator-bring_peg manipulator-insert_ball manipulator-insert_peg
    pendulum-swingup point_mass-easy point_mass-hard quadruped-walk quadruped-run quadruped-escape quadruped-fetch
    reacher-easy reacher-hard stacker-stack_2 stacker-stack_4 swimmer-swimmer6 swimmer-swimmer15 walker-stand
    walker-walk walker-run
"""
DMC: tuple[str, ...] = tuple(f"dmc:{name}" for name in _DMC_NAMES.split())

# Source: DreamerV3 (Hafner et al. 2023, arXiv 2301.04104 v1), the 18 tasks of its control suite under a budget of
# 500k frames; the 20 of its visual suite are these, quadruped-run and quadruped-walk.
_DMC18_NAMES = """
    acrobot-swingup cartpole-balance cartpole-balance_sparse cartpole-swingup cartpole-swingup_sparse cheetah-run
    ball_in_cup-catch finger-spin finger-turn_easy finger-turn_hard hopper-hop hopper-stand pendulum-swingup
    reacher-easy reacher-hard walker-run walker-stand walker-walk
"""
DMC18: tuple[str, ...] = tuple(f"dmc:{name}" for name in _DMC18_NAMES.split())

# Tasks by the name of a set, which stands for all of them on a command line.
SETS: dict[str, tuple[str, ...]] = {
    "atari26": ATARI26, "tiny5": TINY5, "tiny7": TINY7, "vec4": VEC4, "mt10": MT10, "mt50": MT50, "dmc18": DMC18,
}  # fmt: skip
